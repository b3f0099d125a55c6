"""What was to be reached, beside what was: every goal names the row that tells, and the figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.bounds import (
    edit_seconds,
    solve_ratio,
    sum_ratio,
    sum_seconds,
    window_seconds,
)
from benchmarks.gpu.names import COPY, EXACT, PRODUCT, REFERENCE
from benchmarks.gpu.run import MEASURED, NOT_RUN, Row

MET, NOT_MET = "met", "not met"
# Of a row, and the others of its part by name.
Figure = Callable[[Row, Mapping[str, Row]], float]


@dataclass(frozen=True)
class Goal:
    """A figure of a row and its limit.

    Attributes:
        at_least, at_most: one of the two.
        bound: what an H200 could reach, estimated, and from what.
    """

    text: str
    part: str
    row: str
    figure: Figure
    at_least: float | None = None
    at_most: float | None = None
    bound: tuple[Figure, str] | None = None

    def judge(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The goal, what was reached, and whether that is met."""
        limit = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        measured = [r for r in rows if (r["part"], r["state"]) == (self.part, MEASURED)]
        part = {row["name"]: row for row in measured}
        row = part.get(self.row, {})
        reached, state = told(self.figure, row, part), NOT_RUN
        if reached is not None:
            enough = self.at_least is None or reached >= self.at_least
            small = self.at_most is None or reached <= self.at_most
            state = MET if enough and small else NOT_MET
        bound, how = self.bound or (None, "")
        estimate = {"at_best": bound and told(bound, row, part), "estimated_from": how}
        found = {"reached": reached, "state": state, "backend": row.get("backend")}
        return {"goal": self.text, "wanted": limit, **found, **estimate}


def told(figure: Figure, row: Row, part: Mapping[str, Row]) -> float | None:
    """The figure, where the rows that it is made of are there."""
    try:
        return float(f"{figure(row, part):.5g}")
    except KeyError:
        return None


def _times(rival: str) -> Figure:
    return lambda row, part: float(row["beside"][rival]["ratio"])


def _warm(row: Row, part: Mapping[str, Row]) -> float:
    return float(row["median_s"])


def _in_warm_edits(warm: str) -> Figure:
    """Seconds of an edit in those of the row of warm ones."""
    return lambda row, part: float(row["seconds"] / row["edits"] / part[warm]["median_s"])


def _first(row: Row, part: Mapping[str, Row]) -> float:
    return float((row["seconds"] - 1) / row["median_s"])


def _at_best(value: float) -> Figure:
    return lambda row, part: value


def _sum_at_best(kind: str) -> Figure:
    return lambda row, part: sum_ratio(row, kind)


def _solve_at_best(row: Row, part: Mapping[str, Row]) -> float:
    return solve_ratio(row)


def _sums() -> list[Goal]:
    found = []
    kinds = (("bfloat16", 1.7), ("tf32", 1.3), ("float32", 2.5))
    for kind, suffix, least in (*((k, "", n) for k, n in kinds), ("bfloat16", ", mma.sync", 1.2)):
        for d in (6400, 14336):
            text = f"second moment, {kind}{suffix}, d = {d:,}: times torch's full product"
            threefold = "3 x " if kind == "float32" else ""
            rate = "790" if kind == "bfloat16" else "395"
            how = f"{threefold}16,384 d² flop, {rate} T/s: {1e3 * sum_seconds(kind, d):.2g} ms"
            bound = _sum_at_best(kind), how
            row = f"{kind}, d = {d}{suffix}"
            found.append(Goal(text, "second_moment", row, _times(PRODUCT), least, bound=bound))
    return found


def _factors() -> list[Goal]:
    found = []
    whole = _at_best(1.0), "its bytes are the copy's"
    faster = _solve_at_best, "two readings of the triangle, the weight"
    for name, title in (("gpt2-xl", "GPT-2 XL"), ("gpt-j-6b", "GPT-J")):
        text, row = f"solve and apply, factor, {title}", f"solve and apply, {name}, float32 factor"
        share, times = f"{text}: share of a copy", f"{text}: times the dense reference"
        found.append(Goal(share, "rank_one", row, _times(COPY), 0.8, bound=whole))
        found.append(Goal(times, "rank_one", row, _times(REFERENCE), 1.5, bound=faster))
        text, row = f"cholesky_update_, {title}: share of a copy", f"float32, {name}"
        found.append(Goal(text, "cholesky", row, _times(COPY), 0.4, bound=whole))
    return found


# Model, its title, precision, and the seconds that a warm edit may take.
WARM = (
    ("gpt2-xl", "GPT-2 XL", "tf32", 0.15),
    ("gpt2-xl", "GPT-2 XL", "bfloat16", 0.12),
    ("llama-3-8b", "Llama-3-8B", "bfloat16", 0.25),
)


def _edits() -> list[Goal]:
    found = []
    for name, title, precision, seconds in WARM:
        title, warm = f"{title}, {precision}", f"warm edit, {precision}"
        reading = _at_best(edit_seconds(name, precision))
        bound = reading, "39 readings of the upper blocks and the head, 3 of the model"
        found.append(Goal(f"{title}: s", name, warm, _warm, at_most=seconds, bound=bound))
        text = f"{title}, requests of different lengths: s, in warm edits"
        row, times = f"sequence, {precision}", _in_warm_edits(warm)
        found.append(Goal(text, name, row, times, at_most=1.1))
        for size in (16, 64):
            own = window_seconds(name, precision, size)
            how = f"39 passes of 88 positions, {1e3 * own:.2g} ms an edit; alone {seconds:g} s"
            bound = _at_best(seconds / own), how
            text, row = f"{title}, windows of {size}", f"windows of {size}, {precision}"
            text += ": times exact order"
            found.append(Goal(text, name, row, _times(EXACT), 5.0, bound=bound))
    for name, title, precision in (WARM[0][:3], WARM[2][:3]):
        text = f"{title}, {precision}, first edit of a process less 1 s: in warm edits"
        row = f"first edit, {precision}"
        found.append(Goal(text, f"first-{name}", row, _first, at_most=1.5))
    return found


GOALS = (*_sums(), *_factors(), *_edits())
