"""The second moment C = E[k k^T] of ordinary keys (uncentred), and solving with it.

The running sum is the lower triangle of a [d_key, d_key] matrix; C is factored once (Cholesky in
float64) and never inverted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from rome_fast import ops
from rome_fast.errors import (
    InvalidArgumentError,
    NonFiniteError,
    SecondMomentError,
    SecondMomentWarning,
    warn,
)
from rome_fast.model.memory import is_out_of_memory
from rome_fast.moment import files
from rome_fast.moment.factorise import automatic_ridge, factorise, solve_with, whiten_with
from rome_fast.moment.provenance import merge_conflicts, merged_info
from rome_fast.moment.sums import MomentSum

if TYPE_CHECKING:
    from torch import Tensor

_ACCUM_DTYPES = (torch.float32, torch.float64)


class SecondMoment(MomentSum):
    """Streaming sum of k k^T over token positions, and the solve with its mean.

    Args:
        d_key: width of a key.
        dtype: of the running sum, torch.float64 or torch.float32.
        compensated: keep what float32 additions round off in a second matrix, so that the sum is
            about as exact as a float64 one, at the speed of float32 products.
        damping: ridge, as a share of the mean eigenvalue: C + damping * tr(C)/d_key * I; or
            ``"auto"``, a share computed from C's own spectrum and the number of keys.
        source: where the keys came from; edit results quote it.

    Attributes:
        moment_sum: [d_key, d_key], only the lower triangle is kept up to date.
        compensation: [d_key, d_key] or None; the true sum is ``moment_sum + compensation``.
        count: number of keys added.
        jitter: the ridge that the factorisation had to add on its own (0.0 normally).
        is_cached: whether it was read from the cache, where ``second_moment=None`` looks first.
        info: what the file or the collector says about it (hashes of the model, layer, ...).
    """

    def __init__(
        self,
        d_key: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        compensated: bool = False,
        damping: float | Literal["auto"] = 0.0,
        source: str = "keys added by the caller",
    ) -> None:
        if dtype not in _ACCUM_DTYPES:
            raise InvalidArgumentError(f"dtype must be float32 or float64, got {dtype}")
        if compensated and dtype != torch.float32:
            raise InvalidArgumentError("compensated=True is for dtype float32, got float64")
        if type(d_key) is not int or d_key < 1:
            raise InvalidArgumentError(f"d_key must be a whole number of 1 or more, got {d_key!r}")
        with torch.inference_mode(False):  # or nothing could be added outside that mode
            total = torch.zeros(d_key, d_key, dtype=dtype, device=device)
            compensation = torch.zeros_like(total) if compensated else None
        super().__init__(total, compensation, damping=damping, source=source)
        self.jitter = 0.0
        self.is_cached = False

    @classmethod
    def from_moment(cls, moment: Tensor, count: int, **options: Any) -> SecondMoment:
        """Wrap an existing C = E[k k^T], [d_key, d_key] symmetric, of ``count`` keys."""
        if not isinstance(moment, torch.Tensor):
            raise InvalidArgumentError(f"moment must be a tensor, got {type(moment).__name__}")
        if moment.dim() != 2 or moment.shape[0] != moment.shape[1]:
            raise InvalidArgumentError(
                f"moment must be a square matrix, got shape {tuple(moment.shape)}"
            )
        if count < 1:
            raise InvalidArgumentError(f"count must be at least 1, got {count}")
        skew = float((moment - moment.T).abs().max())
        if skew > 1e-4 * float(moment.abs().max()):
            raise InvalidArgumentError(
                f"moment must be symmetric, but differs from its transpose by {skew:.3g}"
            )
        dtype = torch.float32 if moment.dtype == torch.float32 else torch.float64
        options.setdefault("source", "matrix given by the caller")
        made = cls(moment.shape[0], dtype=dtype, device=moment.device, **options)
        made.moment_sum.copy_(moment).mul_(count)
        made.count = count
        return made

    @property
    def damping(self) -> float | Literal["auto"]:
        """Ridge as a share of the mean eigenvalue, or "auto"; setting it drops the factor."""
        return self._damping

    @damping.setter
    def damping(self, damping: float | Literal["auto"]) -> None:
        _check_damping(damping)
        self._damping = damping
        self._factor: Tensor | None = None
        self._ridge: float | None = None

    @torch.no_grad()
    def add(self, keys: Tensor, mask: Tensor | None = None) -> None:
        """Add keys [..., d_key]; ``mask`` [...] (bool) leaves padding out.

        Raises:
            InvalidArgumentError: keys of another width, or a mask of another size.
            NonFiniteError: a key is NaN or infinite; nothing was added.
        """
        self._require_width(keys)
        keys = keys.reshape(-1, self.d_key)
        finite = keys.isfinite().all(-1)
        if mask is not None:
            mask = mask.reshape(-1).bool()
            if len(mask) != len(keys):
                raise InvalidArgumentError(f"mask must have {len(keys)} elements, got {len(mask)}")
            finite |= ~mask
        if not finite.all():
            raise NonFiniteError(f"{int((~finite).sum())} keys hold NaN or infinity")
        ops.second_moment_update_(self.moment_sum, keys, mask, compensation=self.compensation)
        self.count += len(keys) if mask is None else int(mask.sum())
        self._factor = self._ridge = None

    def merge(self, other: SecondMoment) -> None:
        """Add the keys that ``other`` has seen; this one's damping is kept.

        Raises:
            SecondMomentError: it is of another size, layer or model; nothing was added.
        """
        if other is self:
            raise SecondMomentError("cannot merge a second moment with itself: keys count once")
        if other.d_key != self.d_key:
            raise SecondMomentError(
                f"cannot merge second moments of d_key {self.d_key} and {other.d_key}"
            )
        if conflicts := merge_conflicts(self.info, other.info):
            raise SecondMomentError(f"cannot merge second moments: {'; '.join(conflicts)}")
        self.replace_sum(self.exact_sum() + other.exact_sum().to(self.moment_sum.device))
        self.count += other.count
        self.source = f"{self.source} + {other.source}"
        self.info = merged_info(self.info, other.info)

    def __str__(self) -> str:
        ridge = f", ridge {self.ridge():.2g}" if self.damping and self.count else ""
        return self.source + ridge + (f", jitter {self.jitter:g} added" if self.jitter else "")

    def moment(self) -> Tensor:
        """C = E[k k^T] without damping, [d_key, d_key], symmetric; in the sum's dtype, or
        float64 for a compensated sum."""
        self._require_keys()
        exact = self.moment_sum if self.compensation is None else self.exact_sum()
        lower = exact.tril()
        return lower.add_(lower.tril(-1).T).div_(self.count)

    def replace_sum(self, exact: Tensor) -> None:
        """Take ``exact`` [d_key, d_key] (lower triangle) for the sum, in the dtypes of this one."""
        self.moment_sum.copy_(exact)
        if self.compensation is not None:
            self.compensation.copy_(exact - self.moment_sum)
        self._factor = self._ridge = None

    def ridge(self) -> float:
        """The damping as a number, as a share of the mean eigenvalue (see ``factorise``).

        Raises:
            SecondMomentError: empty.
        """
        self._require_keys()
        if self.damping != "auto":
            return float(self.damping)
        if self._ridge is None:
            self._ridge = automatic_ridge(self)
        return self._ridge

    @torch.no_grad()
    def factor(self) -> Tensor:
        """Lower Cholesky factor of the damped C, [d_key, d_key]; computed once, in float64 (in
        float32, with a warning, where memory does not allow that).

        Where rounding leaves a C of enough keys not positive definite it gets a ridge of 1e-8 of
        its mean eigenvalue, then ten times more, up to 1e-4, with a warning; ``jitter`` says how
        much. Beside the sum it takes 16 d_key^2 bytes while it is made, then half of that.

        Raises:
            SecondMomentError: empty, not finite, or of too low a rank to be solved with.
        """
        if self._factor is None:
            self._require_keys()
            if not self._factorise(torch.float64):
                text = f"no memory to factor C ({self.source}) in float64: factored in float32"
                warn(text, SecondMomentWarning)
                self._factorise(torch.float32)
        assert self._factor is not None
        return self._factor

    def drop_factor(self) -> None:
        """Free the factor's memory; the next solve makes it again."""
        self._factor = None

    def _factorise(self, dtype: torch.dtype) -> bool:
        """Make the factor; False where there is no memory for a float64 one."""
        try:
            self._factor, self.jitter = factorise(self, self.ridge(), dtype)
        except (MemoryError, RuntimeError) as error:
            if dtype == torch.float32 or not is_out_of_memory(error):
                raise
            # The traceback keeps this attempt's matrices alive: the caller retries outside of it.
            return False
        return True

    def whiten(self, keys: Tensor) -> Tensor:
        """L^-1 k with C = L L^T, for keys [n, d_key]; float64, same shape.

        Dot products of whitened keys are those of the keys in the metric of C^-1.
        """
        return whiten_with(self.factor(), keys)

    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 k for keys [d_key] or [n, d_key]; float64, same shape."""
        self._require_width(keys)
        return solve_with(self.factor(), keys)

    def save(self, path: str | Path) -> None:
        """Write it to a file, whole or not at all.

        ``.npz`` writes kmeng01/rome's layout (see ``moment.files``), any other name a safetensors
        file: the lower triangle, and a header that says what it is.

        Raises:
            SecondMomentError: empty; or, for .npz, its ``info`` has no "sample_size".
        """
        self._require_keys()
        files.write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> SecondMoment:
        """Read a file of ``save``, or an ``.npz`` of kmeng01/rome, EasyEdit or AlphaEdit.

        Raises:
            SecondMomentError: no such file, another kind of file, truncated or corrupt; the
                message names the path.
        """
        stored = files.read(Path(path))
        made = cls(
            stored.d_key,
            dtype=stored.moment_sum.dtype,
            compensated=stored.compensation is not None,
            damping=stored.damping,
            source=stored.source,
        )
        made.moment_sum, made.compensation = stored.moment_sum, stored.compensation
        made.count, made.info = stored.count, stored.info
        return made

    def _require_width(self, keys: Tensor) -> None:
        if keys.shape[-1:] != (self.d_key,):
            raise InvalidArgumentError(
                f"keys must have shape [..., {self.d_key}], got {list(keys.shape)}"
            )

    def _require_keys(self) -> None:
        if not self.count:
            raise SecondMomentError("second moment is empty: add keys first")


def _check_damping(damping: float | str) -> None:
    if damping == "auto":
        return
    if isinstance(damping, str) or not 0.0 <= damping < float("inf"):
        raise InvalidArgumentError(f"damping must be 'auto' or finite and >= 0, got {damping!r}")
