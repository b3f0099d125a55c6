"""Files of second moments: safetensors with a header and a checksum, and the reference's .npz.

A safetensors file holds the lower triangle row by row ("moment_sum", and "compensation" where
there is one), and as metadata one JSON object: format, d_key, count, damping, source, sha256 of
the tensors, and ``info`` (what the collector knows; ``provenance`` names its hashes).
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rome_fast.atomic_files import write_whole
from rome_fast.errors import SecondMomentError
from rome_fast.model.hashes import fingerprint
from rome_fast.moment.sums import MomentSum

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = "rome_fast.second_moment.2"
_CONSTRUCTOR = "util.runningstats.SecondMoment()"
# transformer.h.17.mlp.c_proj_float32_mom2_100000.npz (kmeng01/rome, rome/layer_stats.py)
_REFERENCE_NAME = re.compile(r"(?P<module>.+)_float(32|64)_mom2(_.*)?\.npz")


def write(moment: MomentSum, path: Path) -> None:
    """Write ``moment`` in the format that the suffix of ``path`` names, atomically."""
    store = _write_npz if path.suffix == ".npz" else _write_safetensors
    write_whole(path, lambda partial: store(moment, partial))


def read(path: Path) -> MomentSum:
    """Read a file in the format that the suffix of ``path`` names.

    Raises:
        SecondMomentError: absent, of another kind, truncated or corrupt.
    """
    if not path.is_file():
        raise SecondMomentError(f"second_moment: there is no file {str(path)!r}")
    with torch.inference_mode(False):  # or nothing could be added outside that mode
        return _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)


def pack(square: Tensor) -> Tensor:
    """The lower triangle of [d, d], row by row: [d (d + 1) / 2] on the CPU."""
    return torch.cat([row[: i + 1] for i, row in enumerate(square.cpu())])


def unpack_(square: Tensor, packed: Tensor) -> None:
    """Put a packed lower triangle back into [d, d], in place."""
    rows = packed.split(list(range(1, len(square) + 1)))
    for i, row in enumerate(rows):
        square[i, : i + 1] = row


def _write_safetensors(moment: MomentSum, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"moment_sum": pack(moment.moment_sum)}
    if moment.compensation is not None:
        tensors["compensation"] = pack(moment.compensation)
    header = {
        "format": _FORMAT,
        "d_key": moment.d_key,
        "count": moment.count,
        "damping": moment.damping,
        "source": moment.source,
        "info": moment.info,
    }
    header["sha256"] = _checksum(header, tensors)
    save_file(tensors, path, metadata={"second_moment": json.dumps(header)})


def _read_safetensors(path: Path) -> MomentSum:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["second_moment"])
            if header["format"] != _FORMAT:
                raise KeyError(header["format"])
            # In the order in which they were hashed.
            names = sorted(file.keys(), reverse=True)
            tensors = {name: file.get_tensor(name) for name in names}
        return _from_parts(path, header, tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, SecondMomentError):
            raise
        raise SecondMomentError(
            f"second_moment: {str(path)!r} is not a second-moment file of rome_fast, or it is "
            f"truncated: {error}"
        ) from error


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the tensors and of the rest of the header."""
    said = json.dumps({k: v for k, v in header.items() if k != "sha256"}, sort_keys=True)
    return hashlib.sha256(f"{said}{fingerprint(*tensors.values())}".encode()).hexdigest()


def _from_parts(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> MomentSum:
    if _checksum(header, tensors) != header["sha256"]:
        raise SecondMomentError(
            f"second_moment: {str(path)!r} is damaged: it does not match its checksum"
        )
    return MomentSum(
        moment_sum=_square(header["d_key"], tensors["moment_sum"]),
        compensation=_square(header["d_key"], tensors["compensation"])
        if "compensation" in tensors
        else None,
        count=header["count"],
        damping=header["damping"],
        source=header["source"],
        info=header["info"],
    )


def _square(d_key: int, packed: Tensor) -> Tensor:
    square = torch.zeros(d_key, d_key, dtype=packed.dtype, device="cpu")
    unpack_(square, packed)
    return square


def _write_npz(moment: MomentSum, path: Path) -> None:
    if "sample_size" not in moment.info:
        raise SecondMomentError(
            "an .npz needs the number of texts that its reader asks for (mom2_n_samples of the "
            "hparams): set moment.info['sample_size'], or give --sample-size"
        )
    dtype = moment.moment_sum.dtype
    total = moment.exact_sum().tril()
    total += total.tril(-1).T
    arrays: dict[str, Any] = {
        "mom2.constructor": np.array(_CONSTRUCTOR),
        "mom2.count": np.array(moment.count),
        "mom2.mom2": total.to(dtype).cpu().numpy(),
        "sample_size": np.array(moment.info["sample_size"]),
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _read_npz(path: Path) -> MomentSum:
    try:
        with np.load(path, allow_pickle=False) as file:
            count, total = int(file["mom2.count"]), torch.from_numpy(file["mom2.mom2"])
            sample_size = file["sample_size"]
        if total.dim() != 2 or total.shape[0] != total.shape[1] or not total.is_floating_point():
            raise ValueError(f"mom2.mom2 has shape {tuple(total.shape)} and dtype {total.dtype}")
        if count < 1 or not total.isfinite().all():
            raise ValueError(f"mom2.count is {count}, or mom2.mom2 holds NaN or infinity")
    except (
        OSError,
        KeyError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise SecondMomentError(
            f"second_moment: {str(path)!r} is not a second moment in kmeng01/rome's .npz layout, "
            f"or it is truncated ({error})"
        ) from error
    dtype = torch.float32 if total.dtype == torch.float32 else torch.float64
    made = MomentSum(total.to(dtype, copy=True), None, count, source=f"{count} keys of {path.name}")
    # An absent sample size is stored as NaN.
    if not np.isnan(sample_size):
        made.info["sample_size"] = int(sample_size)
    if named := _REFERENCE_NAME.fullmatch(path.name):
        made.info["module"] = named["module"]
    return made
