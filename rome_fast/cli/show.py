"""``rome-fast stats show``: a second moment in words, numbers and a plot of its spectrum."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich import box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rome_fast.cli.common import console
from rome_fast.errors import SecondMomentError

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.moment.second_moment import SecondMoment

_BAR = 40
_DECILES = {"largest": 1.0, **{f"{p} %": p / 100 for p in range(90, 0, -10)}, "smallest": 0.0}


def print_moment(moment: SecondMoment, path: Path) -> None:
    """Print what the file says, and what its eigenvalues say.

    Raises:
        SecondMomentError: it holds no keys, or numbers that cannot come from keys.
    """
    values = _eigenvalues(moment)
    console.print(Text(f"{path.name}: {moment.source}"))
    console.print(_facts({**_described(moment), **_conditioning(moment, values)}))
    floor = max(float(values[0]) / 2, _noise(moment, values))
    console.print(f"eigenvalues of C, bars on a log scale from {floor:.1e} to {values[-1]:.1e}")
    console.print(_spectrum(values, floor))


def _eigenvalues(moment: SecondMoment) -> Tensor:
    """Eigenvalues of C without damping, ascending, float64 [d_key] on the CPU."""
    c = moment.moment().double()
    if not c.diagonal().sum() > 0 or not c.tril().isfinite().all():
        raise SecondMomentError(f"second moment ({moment.source}) is zero or not finite")
    return torch.linalg.eigvalsh(c).cpu()


def _noise(moment: SecondMoment, values: Tensor) -> float:
    """The size below which an eigenvalue is a rounding error of the sum."""
    return float(values[-1]) * torch.finfo(moment.moment_sum.dtype).eps


def _described(moment: SecondMoment) -> dict[str, str]:
    """What is known of the model and the texts; an .npz knows little."""
    info = moment.info
    dtype = str(moment.moment_sum.dtype).removeprefix("torch.")
    facts = {
        "keys": f"{moment.count:,}, {moment.count / moment.d_key:,.1f} per dimension",
        "dimension": f"{moment.d_key:,}",
        "sum": dtype if moment.compensation is None else f"{dtype}, compensated",
    }
    if "module" in info:
        facts["module"] = info["module"]
    if "layer" in info:
        facts["layer"] = f"{info['layer']} of a {info['model_type']}"
        facts["model"] = (
            f"configuration {info['config']:.8}, weights {info['weights']:.8} "
            f"({info['weights_dtype']})"
        )
    if "tokenizer" in info:
        facts["tokenizer"] = f"{info['tokenizer']:.8}"
    if "texts" in info:
        facts["texts"] = info["texts"]
    if "tokens" in info:
        facts["tokens read"] = f"{info['tokens']:,}"
    if {"max_length", "documents", "first_token"} <= info.keys():
        facts["rows"] = (
            f"{info['max_length']} tokens, documents {info['documents']}, first token "
            f"{info['first_token']}"
        )
    if "sample_size" in info:
        facts["sample size"] = f"{info['sample_size']:,} texts"
    if "versions" in info:
        facts["made with"] = ", ".join(f"{name} {v}" for name, v in info["versions"].items())
    return facts


def _conditioning(moment: SecondMoment, values: Tensor) -> dict[str, str]:
    ridge = moment.ridge()
    added = ridge * float(values.mean())
    rank = int((values > _noise(moment, values)).sum())
    effective = float(values.sum() ** 2 / values.square().sum())
    condition = _ratio(values[-1], values[0])
    if ridge:
        condition += f", with the ridge {_ratio(values[-1] + added, values[0] + added)}"
    return {
        "damping": f"{moment.damping}: ridge {ridge:.3g} of the mean eigenvalue",
        "condition": condition,
        "rank": f"{rank:,} of {moment.d_key:,} eigenvalues are above rounding",
        "effective rank": f"{effective:,.1f} (tr(C)^2 / tr(C^2))",
    }


def _ratio(largest: Tensor, smallest: Tensor) -> str:
    return f"{float(largest / smallest):.2g}" if smallest > 0 else "infinite"


def _facts(facts: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(str(value)))
    return table


def _spectrum(values: Tensor, floor: float) -> Table:
    """Deciles of the eigenvalues, with bars on a log scale that begins at ``floor``."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("share below", justify="right")
    table.add_column("eigenvalue", justify="right")
    table.add_column()
    span = math.log(float(values[-1]) / floor)
    for name, share in _DECILES.items():
        value = float(values.quantile(share))
        height = math.log(value / floor) / span if value > floor else 0.0
        table.add_row(name, f"{value:.2e}", ProgressBar(1.0, height, width=_BAR))
    return table
