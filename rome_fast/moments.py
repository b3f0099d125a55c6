"""The second moment C = E[k k^T] of ordinary keys (uncentred), and solving with it.

The running sum is the lower triangle of a [d_key, d_key] matrix; C is factored once (Cholesky in
float64) and never inverted.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rome_fast import ops
from rome_fast.errors import InvalidArgumentError, SecondMomentError

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = "rome_fast.second_moment.1"
_ACCUM_DTYPES = (torch.float32, torch.float64)


class SecondMoment:
    """Streaming sum of k k^T over token positions, and the solve with its mean.

    Args:
        d_key: width of a key.
        dtype: of the running sum, torch.float64 or torch.float32.
        damping: ridge, as a share of the mean eigenvalue: C + damping * tr(C)/d_key * I.
        source: where the keys came from; edit results quote it.

    Attributes:
        moment_sum: [d_key, d_key], only the lower triangle is kept up to date.
        count: number of keys added.
        jitter: the ridge that the factorisation had to add on its own (0.0 normally).
        info: what the file or the collector says about it (model fingerprint, layer, ...).
    """

    def __init__(
        self,
        d_key: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        damping: float = 0.0,
        source: str = "keys added by the caller",
    ) -> None:
        if dtype not in _ACCUM_DTYPES:
            raise InvalidArgumentError(f"dtype must be float32 or float64, got {dtype}")
        if not 0.0 <= damping < float("inf"):
            raise InvalidArgumentError(f"damping must be finite and >= 0, got {damping}")
        self.moment_sum = torch.zeros(d_key, d_key, dtype=dtype, device=device)
        self.count = 0
        self.damping = damping
        self.source = source
        self.jitter = 0.0
        self.info: dict[str, Any] = {}
        self._factor: Tensor | None = None

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
        ops.second_moment_update_(self.moment_sum, keys, mask)
        self.count += len(keys) if mask is None else int(mask.sum())
        self._factor = None

    def merge(self, other: SecondMoment) -> None:
        """Add the keys that ``other`` has seen; same d_key."""
        if other.d_key != self.d_key:
            raise SecondMomentError(
                f"cannot merge second moments of d_key {self.d_key} and {other.d_key}"
            )
        self.moment_sum += other.moment_sum.to(self.moment_sum)
        self.count += other.count
        self._factor = None

    def __str__(self) -> str:
        return self.source + (f", ridge {self.jitter:g} added" if self.jitter else "")

    def moment(self) -> Tensor:
        """C = E[k k^T] without damping, [d_key, d_key], symmetric, in the sum's dtype."""
        if not self.count:
            raise SecondMomentError("second moment is empty: add keys first")
        lower = self.moment_sum.tril()
        return (lower + lower.tril(-1).T) / self.count

    @torch.no_grad()
    def factor(self) -> Tensor:
        """Lower Cholesky factor of the damped C, float64 [d_key, d_key]; computed once.

        A C that is not positive definite (fewer keys than d_key, say) gets a ridge of 1e-8 of
        its mean eigenvalue, then ten times more, up to 1e-2; ``jitter`` says how much.

        Raises:
            SecondMomentError: empty, not finite, or still singular.
        """
        if self._factor is None:
            self._factor = self._factorise()
        return self._factor

    def _factorise(self) -> Tensor:
        moment = self.moment().double()
        scale = float(moment.diagonal().mean())
        if not scale > 0 or not torch.isfinite(moment).all():
            raise SecondMomentError(
                f"second moment ({self.source}) is zero or not finite: mean diagonal {scale}"
            )
        for jitter in (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
            damped = moment.clone()
            damped.diagonal().add_((self.damping + jitter) * scale)
            factor, failed = torch.linalg.cholesky_ex(damped)
            # A pivot at rounding level is a rank that is not there, though LAPACK lets it pass.
            pivot = float(factor.diagonal().square().min())
            if not int(failed) and pivot > 1e-13 * scale:
                self.jitter = jitter
                return factor
        raise SecondMomentError(
            f"second moment ({self.source}, d_key {self.d_key}) of {self.count} keys is singular: "
            f"collect at least {10 * self.d_key} keys or pass damping="
        )

    @torch.no_grad()
    def whiten(self, keys: Tensor) -> Tensor:
        """L^-1 k with C = L L^T, for keys [n, d_key]; float64, same shape.

        Dot products of whitened keys are those of the keys in the metric of C^-1.
        """
        columns = keys.to(self.moment_sum.device).double().T
        return torch.linalg.solve_triangular(self.factor(), columns, upper=False).T

    @torch.no_grad()
    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 k for keys [d_key] or [n, d_key]; float64, same shape."""
        columns = keys.to(self.moment_sum.device).double().reshape(-1, self.d_key).T
        return torch.cholesky_solve(columns, self.factor()).T.reshape(keys.shape)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: the lower triangle, and a header that says what it is."""
        from safetensors.torch import save_file

        header = {
            "format": _FORMAT,
            "count": self.count,
            "damping": self.damping,
            "source": self.source,
            "info": self.info,
        }
        rows, cols = torch.tril_indices(self.d_key, self.d_key)
        packed = self.moment_sum[rows, cols].cpu()
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file is there whole or not at all, also when two processes write it.
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        save_file({"moment_sum": packed}, partial, metadata={"second_moment": json.dumps(header)})
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> SecondMoment:
        """Read a file written by ``save``.

        Raises:
            SecondMomentError: no such file, or not one of ours; the message names the path.
        """
        header, packed = _read(Path(path))
        d_key = int(((8 * len(packed) + 1) ** 0.5 - 1) / 2)
        made = cls(d_key, dtype=packed.dtype, damping=header["damping"], source=header["source"])
        rows, cols = torch.tril_indices(d_key, d_key)
        made.moment_sum[rows, cols] = packed
        made.count = header["count"]
        made.info = header["info"]
        return made


def _read(path: Path) -> tuple[Mapping[str, Any], Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["second_moment"])
            if header["format"] != _FORMAT:
                raise KeyError(header["format"])
            return header, file.get_tensor("moment_sum")
    except FileNotFoundError as error:
        raise SecondMomentError(f"second_moment: there is no file {str(path)!r}") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise SecondMomentError(
            f"second_moment: {str(path)!r} is not a second-moment file of rome_fast: {error}"
        ) from error
