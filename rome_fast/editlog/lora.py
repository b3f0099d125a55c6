"""Edits as a LoRA adapter in PEFT's file format, which PEFT and vLLM load on the unedited model.

Written by hand, so that exporting needs no peft: two files, whose fields PEFT has kept for years.
tests/editlog/test_lora.py loads them with peft.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.atomic_files import write_text, write_whole
from rome_fast.editlog.edits import LoggedEdit
from rome_fast.editlog.records import LogRecords, by_weight
from rome_fast.editlog.solved import updates_of
from rome_fast.errors import EditLogError, InvalidArgumentError

if TYPE_CHECKING:
    from torch import Tensor

# vLLM loads no adapter of a higher rank.
SERVED_RANK = 512


@dataclass(frozen=True)
class LoraExport:
    """What an adapter holds.

    Attributes:
        path: of its folder.
        ranks: of each edited weight, by its module's name.
        errors: of each, the Frobenius norm of what the adapter lacks, as a share of the edits' own;
            0.0 where it is exact.
    """

    path: Path
    ranks: dict[str, int]
    errors: dict[str, float]

    def __str__(self) -> str:
        return f"{self.path}: {'; '.join(map(self._say, self.ranks))}"

    def _say(self, name: str) -> str:
        rank, error = self.ranks[name], self.errors[name]
        state = f"{error:.2%} of the edits' norm missing" if error else "exact"
        more = f", more than the {SERVED_RANK} that vLLM takes (max_rank)"
        return f"{name}: rank {rank}, {state}{more if rank > SERVED_RANK else ''}"


def write_lora(log: LogRecords, path: Path, max_rank: int | None) -> LoraExport:
    """Write adapter_config.json and adapter_model.safetensors (``EditLog.to_lora``)."""
    from safetensors.torch import save_file

    if max_rank is not None and (type(max_rank) is not int or max_rank < 1):
        raise InvalidArgumentError(
            f"max_rank must be a whole number of 1 or more, got {max_rank!r}"
        )
    beside = sum(edit.form != "weight" for edit in log.holding())
    if beside:
        raise EditLogError(
            f"{beside} edits of the log stand beside a weight, which no adapter can hold: take "
            'them as rank-one edits, log.as_form("weight", model, tok)'
        )
    if not log.holding():
        raise EditLogError("no edit of the log holds: there is nothing to export")
    if (path / "config.json").exists():
        raise EditLogError(
            f"{str(path)!r} is the folder of a model, which would be loaded with the adapter on "
            "top: name another folder"
        )
    tensors: dict[str, Tensor] = {}
    ranks, errors = {}, {}
    for weight_name, edits in by_weight(log.holding()).items():
        name = weight_name.removesuffix(".weight")
        a, b, errors[name] = _factors(edits, max_rank)
        ranks[name] = len(a)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    path.mkdir(parents=True, exist_ok=True)
    # The weights last: a folder without them is not taken for an adapter.
    write_text(path / "adapter_config.json", json.dumps(_config(log, ranks), indent=2))
    write_whole(path / "adapter_model.safetensors", lambda file: save_file(tensors, file))
    return LoraExport(path, ranks, errors)


def _factors(edits: list[LoggedEdit], max_rank: int | None) -> tuple[Tensor, Tensor, float]:
    """A [r, d_key] and B [d_value, r] with B A = sum of v u^T, float32, and its relative error."""
    updates = updates_of(edits)
    a = torch.stack([update.u.cpu() for update in updates])
    b = torch.stack([update.v.cpu() for update in updates], dim=1)
    full = min(len(edits), a.shape[1], b.shape[0])
    rank = full if max_rank is None else min(full, max_rank)
    if rank == len(edits):
        return a.float().contiguous(), b.float().contiguous(), 0.0
    # SVD of B A by that of the small product of their R factors (QR), in float64.
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    left, sizes, right = torch.linalg.svd(r_b @ r_a.T)
    error = float(sizes[rank:].norm() / sizes.norm())
    root = sizes[:rank].sqrt()
    a = root[:, None] * (right[:rank] @ q_a.T)
    b = (q_b @ left[:, :rank]) * root
    return a.float().contiguous(), b.float().contiguous(), error if rank < full else 0.0


def _config(log: LogRecords, ranks: dict[str, int]) -> dict[str, Any]:
    layouts = {log.base.edited[f"{name}.weight"].weight_layout for name in ranks}
    rank = max(ranks.values())
    # PEFT scales B A by alpha / r: they are equal, so by 1.
    others = {name: r for name, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": log.base.name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": layouts == {"in_out"},
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
