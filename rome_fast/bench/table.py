"""What was measured, as a table to read and as facts to keep."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from rome_fast.model.spec import ModelSpec, embedding_rows

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from rome_fast.bench.case import Case
    from rome_fast.bench.measure import Comparison, Row
    from rome_fast.bench.parts import Parts

_LEFT = ("", "commit")
_COMMIT = 8
_RIGHT = ("seconds", "x rome_fast", "MiB", "cosine", "same")
_FOLD = ("seconds", "x rome_fast")  # quartiles below the median, where it is narrow


def table_of(comparison: Comparison) -> Table:
    """One line per implementation; the seconds of one that does not match mean nothing."""
    title = f"{comparison.c_mode}; medians (quartiles); peak MiB beyond the model; cosine of dW"
    # The box sets one space between columns; with that alone the table fits into 80.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.show_edge = False
    for column in (*_LEFT, *_RIGHT):
        justify: JustifyMethod = "left" if column in _LEFT else "right"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column not in _FOLD)
    for row in comparison.rows:
        table.add_row(
            row.name,
            row.commit[:_COMMIT] or "-",
            _spread(row.seconds, ".3g"),
            _spread(row.times_ours, ".2f") if row.times_ours else "1",
            "-" if row.peak_mib is None else f"{row.peak_mib:,}",
            f"{row.cosine:.5f}",
            "yes" if row.matched else "NO",
        )
    return table


def remarks(comparison: Comparison) -> list[str]:
    """Lines below the table: where rome_fast's time goes, and how much of it is arithmetic."""
    ours = comparison.rows[0]
    phases = sorted(ours.phases.items(), key=lambda item: -item[1])
    told = ", ".join(f"{name} {seconds:.3g}" for name, seconds in phases if seconds > 5e-4)
    edit = f"{comparison.c_mode}, {ours.n_steps} steps, backend {comparison.backend}"
    gflop, share = comparison.floor.flops / 1e9, comparison.floor_fraction(ours)
    at_rate = f"{gflop:,.3g} GFLOP at the {_gflops(comparison):,.0f} GFLOP/s of a matrix product"
    takes = f"take {comparison.floor_seconds:.3g} s, {share:.0%} of rome_fast's median"
    lines = [f"rome_fast ({edit}), seconds by phase: {told}", f"floor: {at_rate} {takes}"]
    early = [row for row in comparison.rows if row.n_steps < comparison.steps_allowed]
    if early:
        steps = ", ".join(f"{row.name} after {row.n_steps}" for row in early)
        lines.append(f"stopped early, of {comparison.steps_allowed} steps: {steps}")
    return lines


def parts_table(parts: Parts) -> Table:
    """One line per part of rome_fast's edit."""
    table = Table(
        title="rome_fast, part by part", title_justify="left", box=box.SIMPLE_HEAD, padding=0
    )
    table.show_edge = False
    table.add_column("")
    for column in ("seconds", "share", "floor"):
        table.add_column(column, justify="right")
    total = sum(part.seconds for part in parts.parts)
    for part in parts.parts:
        floor = f"{part.floor:.3g}" if part.floor else "-"
        table.add_row(part.name, f"{part.seconds:.3g}", f"{part.seconds / total:.0%}", floor)
    return table


def parts_remarks(parts: Parts) -> list[str]:
    """Lines below that table."""
    if parts.in_python is None:
        return []
    return [f"{parts.in_python:.0%} of an edit is spent outside of torch's operators, in Python"]


def parts_facts(parts: Parts) -> dict[str, Any]:
    """Every figure of the parts, JSON-able."""
    seconds = {part.name: round(part.seconds, 5) for part in parts.parts}
    floors = {part.name: round(part.floor, 5) for part in parts.parts}
    return {"seconds": seconds, "floor_seconds": floors, "share_in_python": parts.in_python}


def case_facts(case: Case) -> dict[str, Any]:
    """What was edited and how, JSON-able; no text of the model's path."""
    spec = ModelSpec.of(case.model)
    return {
        "model": {
            "class": type(case.model).__name__,
            "layers": spec.n_layers,
            "d_model": spec.d_model,
            "vocabulary": embedding_rows(case.model),
            "parameters": sum(p.numel() for p in case.model.parameters()),
            "dtype": str(case.model.dtype).removeprefix("torch."),
        },
        "request": dataclasses.asdict(case.request),
        "hparams": dataclasses.asdict(case.hparams),
        "n_contexts": len(case.context_templates),
    }


def row_facts(comparison: Comparison, row: Row) -> dict[str, Any]:
    """Every figure of a row, JSON-able."""
    return {
        "implementation": row.name,
        "commit": row.commit,
        "c_mode": comparison.c_mode,
        "backend": comparison.backend,
        "seconds_median": round(row.median, 5),
        "seconds_quartiles": [round(q, 5) for q in quartiles(row.seconds)],
        "rounds": len(row.seconds),
        "times_rome_fast": round(statistics.median(row.times_ours), 3) if row.times_ours else 1.0,
        "times_rome_fast_quartiles": [round(q, 3) for q in quartiles(row.times_ours)],
        "phases": {name: round(seconds, 5) for name, seconds in row.phases.items()},
        "steps": row.n_steps,
        "steps_allowed": comparison.steps_allowed,
        "floor_gflop": {
            phase: round(flops / 1e9, 6)
            for phase, flops in dataclasses.asdict(comparison.floor).items()
            if phase != "loop_tokens"
        },
        "gemm_gflop_per_s": round(_gflops(comparison), 1),
        "floor_seconds": round(comparison.floor_seconds, 5),
        "floor_fraction": round(comparison.floor_fraction(row), 4),
        "cosine": round(row.cosine, 7),
        "norm_ratio": round(row.norm_ratio, 6),
        "matched": row.matched,
        "peak_mib": row.peak_mib,
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower and the upper quartile; a single value is both, and no values have none."""
    if len(values) < 2:
        return [*values, *values]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def _spread(values: Sequence[float], form: str) -> str:
    low, high = (format(q, form) for q in quartiles(values))
    return f"{statistics.median(values):{form}} ({low}-{high})"


def _gflops(comparison: Comparison) -> float:
    return comparison.flops_per_s / 1e9
