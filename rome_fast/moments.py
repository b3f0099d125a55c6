"""The second moment C = E[k k^T] of ordinary keys (uncentred), and solving with it.

The running sum is the lower triangle of a [d_key, d_key] matrix; C is factored once (Cholesky in
float64) and never inverted.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from rome_fast import ops
from rome_fast.errors import InvalidArgumentError, SecondMomentError, SecondMomentWarning
from rome_fast.memory import is_out_of_memory
from rome_fast.provenance import merge_conflicts, merged_info

if TYPE_CHECKING:
    from torch import Tensor

_ACCUM_DTYPES = (torch.float32, torch.float64)
_JITTERS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


class SecondMoment:
    """Streaming sum of k k^T over token positions, and the solve with its mean.

    Args:
        d_key: width of a key.
        dtype: of the running sum, torch.float64 or torch.float32.
        compensated: keep what float32 additions round off in a second matrix, so that the sum is
            about as exact as a float64 one, at the speed of float32 products.
        damping: ridge, as a share of the mean eigenvalue: C + damping * tr(C)/d_key * I; or
            ``"auto"``, the share that C's own spectrum and the number of keys ask for.
        source: where the keys came from; edit results quote it.

    Attributes:
        moment_sum: [d_key, d_key], only the lower triangle is kept up to date.
        compensation: [d_key, d_key] or None; the true sum is ``moment_sum + compensation``.
        count: number of keys added.
        jitter: the ridge that the factorisation had to add on its own (0.0 normally).
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
        _check_damping(damping)
        self.moment_sum = torch.zeros(d_key, d_key, dtype=dtype, device=device)
        self.compensation = torch.zeros_like(self.moment_sum) if compensated else None
        self.count = 0
        self.damping = damping
        self.source = source
        self.jitter = 0.0
        self.info: dict[str, Any] = {}
        self._factor: Tensor | None = None
        self._ridge: float | None = None

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
    def d_key(self) -> int:
        return int(self.moment_sum.shape[0])

    @torch.no_grad()
    def add(self, keys: Tensor, mask: Tensor | None = None) -> None:
        """Add keys [..., d_key]; ``mask`` [...] (bool) leaves padding out."""
        keys = keys.reshape(-1, keys.shape[-1])
        if mask is not None:
            mask = mask.reshape(-1).bool()
        ops.second_moment_update_(self.moment_sum, keys, mask, compensation=self.compensation)
        self.count += len(keys) if mask is None else int(mask.sum())
        self._factor = self._ridge = None

    def merge(self, other: SecondMoment) -> None:
        """Add the keys that ``other`` has seen.

        Raises:
            SecondMomentError: it is of another size, layer or model; nothing was added.
        """
        if other.d_key != self.d_key:
            raise SecondMomentError(
                f"cannot merge second moments of d_key {self.d_key} and {other.d_key}"
            )
        if conflicts := merge_conflicts(self.info, other.info):
            raise SecondMomentError(f"cannot merge second moments: {'; '.join(conflicts)}")
        both = self._exact_sum() + other._exact_sum().to(self.moment_sum.device)
        self.moment_sum.copy_(both)
        if self.compensation is not None:
            self.compensation.copy_(both - self.moment_sum)
        self.count += other.count
        self.source = f"{self.source} + {other.source}"
        self.info = merged_info(self.info, other.info)
        self._factor = self._ridge = None

    def __str__(self) -> str:
        ridge = f", ridge {self.ridge():.2g}" if self.damping and self.count else ""
        return self.source + ridge + (f", jitter {self.jitter:g} added" if self.jitter else "")

    def moment(self) -> Tensor:
        """C = E[k k^T] without damping, [d_key, d_key], symmetric; in the sum's dtype, or
        float64 for a compensated sum."""
        self._require_keys()
        exact = self.moment_sum if self.compensation is None else self._exact_sum()
        lower = exact.tril()
        return lower.add_(lower.tril(-1).T).div_(self.count)

    def ridge(self) -> float:
        """The damping as a number, as a share of the mean eigenvalue.

        For ``"auto"`` it is the shrinkage of Chen et al. 2010 (OAS, eq. 23) towards the scaled
        identity: about (1 + effective rank) / count, so it vanishes as keys are added.

        Raises:
            SecondMomentError: empty.
        """
        self._require_keys()
        if self.damping != "auto":
            return float(self.damping)
        if self._ridge is None:
            self._ridge = _oas_ridge(self._exact_sum().div_(self.count), self.count)
        return self._ridge

    @torch.no_grad()
    def factor(self) -> Tensor:
        """Lower Cholesky factor of the damped C, [d_key, d_key]; computed once, in float64 (in
        float32, with a warning, where memory does not allow that).

        Where rounding leaves a C of enough keys not positive definite it gets a ridge of 1e-8 of
        its mean eigenvalue, then ten times more, up to 1e-4, with a warning; ``jitter`` says how
        much.

        Raises:
            SecondMomentError: empty, not finite, or of too low a rank to be solved with.
        """
        if self._factor is None:
            try:
                self._factor = self._factorise(torch.float64)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                _warn(f"no memory to factor C ({self}) in float64: factored in float32")
                self._factor = self._factorise(torch.float32)
        return self._factor

    def drop_factor(self) -> None:
        """Free the factor's memory; the next solve makes it again."""
        self._factor = None

    def _factorise(self, dtype: torch.dtype) -> Tensor:
        self._require_keys()
        damped = self._exact_sum(dtype).div_(self.count)  # LAPACK reads the lower triangle only
        diagonal = damped.diagonal().clone()
        scale = float(diagonal.mean())
        if not scale > 0 or not torch.isfinite(damped.tril_()).all():
            raise SecondMomentError(
                f"second moment ({self.source}) is zero or not finite: mean diagonal {scale}"
            )
        ridge = self.ridge()
        for jitter in (0.0, *_JITTERS):
            damped.diagonal().copy_(diagonal).add_((ridge + jitter) * scale)
            factor, failed = torch.linalg.cholesky_ex(damped)
            # A pivot at rounding level is a rank that is not there, though LAPACK lets it pass.
            pivot = float(factor.diagonal().square().min())
            if not int(failed) and pivot > 500 * torch.finfo(dtype).eps * scale:
                self.jitter = jitter
                if jitter:
                    _warn(
                        f"second moment ({self.source}) is singular to rounding: {jitter:g} of "
                        "its mean eigenvalue was added; set damping= to choose a ridge yourself"
                    )
                return factor
            if self.count < self.d_key:
                break
        raise SecondMomentError(self._why_singular(damped, diagonal))

    def _why_singular(self, damped: Tensor, diagonal: Tensor) -> str:
        damped.diagonal().copy_(diagonal)
        symmetric = damped + damped.tril(-1).T
        rank = int(torch.linalg.matrix_rank(symmetric, hermitian=True))
        return (
            f"second moment ({self.source}) has rank {rank} of {self.d_key} from {self.count:,} "
            f"keys: collect {5 * self.d_key:,} keys or more, or set damping='auto'"
        )

    @torch.no_grad()
    def whiten(self, keys: Tensor) -> Tensor:
        """L^-1 k with C = L L^T, for keys [n, d_key]; float64, same shape.

        Dot products of whitened keys are those of the keys in the metric of C^-1.
        """
        factor = self.factor()
        columns = keys.to(factor).T
        return torch.linalg.solve_triangular(factor, columns, upper=False).T.double()

    @torch.no_grad()
    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 k for keys [d_key] or [n, d_key]; float64, same shape."""
        factor = self.factor()
        columns = keys.to(factor).reshape(-1, self.d_key).T
        return torch.cholesky_solve(columns, factor).T.reshape(keys.shape).double()

    def save(self, path: str | Path) -> None:
        """Write it to a file, whole or not at all.

        ``.npz`` writes kmeng01/rome's layout (see ``moment_files``), any other name a safetensors
        file: the lower triangle, and a header that says what it is.

        Raises:
            SecondMomentError: empty; or, for .npz, its ``info`` has no "sample_size".
        """
        from rome_fast.moment_files import write

        self._require_keys()
        write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> SecondMoment:
        """Read a file of ``save``, or an ``.npz`` of kmeng01/rome, EasyEdit or AlphaEdit.

        Raises:
            SecondMomentError: no such file, another kind of file, truncated or corrupt; the
                message names the path.
        """
        from rome_fast.moment_files import read

        return read(Path(path))

    def _require_keys(self) -> None:
        if not self.count:
            raise SecondMomentError("second moment is empty: add keys first")

    def _exact_sum(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """A copy of the sum with what its compensation holds; only the lower triangle is valid."""
        total = self.moment_sum.to(dtype, copy=True)
        return total if self.compensation is None else total.add_(self.compensation)


def _oas_ridge(moment: Tensor, count: int) -> float:
    """Ridge as a share of the mean eigenvalue; of ``moment`` only the lower triangle is read."""
    d, diagonal = len(moment), moment.diagonal()
    trace = float(diagonal.sum())
    squares = 2 * float(moment.tril().norm()) ** 2 - float(diagonal.norm()) ** 2
    spread = (count + 1 - 2 / d) * (squares - trace**2 / d)
    excess = (1 - 2 / d) * squares + trace**2
    share = min(excess / spread, 0.5) if spread > 0 else 0.5
    return share / (1 - share)


def _check_damping(damping: float | str) -> None:
    if damping == "auto":
        return
    if isinstance(damping, str) or not 0.0 <= damping < float("inf"):
        raise InvalidArgumentError(f"damping must be 'auto' or finite and >= 0, got {damping!r}")


def _warn(message: str) -> None:
    warnings.warn(message, SecondMomentWarning, stacklevel=4)
