"""What was to be reached, beside what was: every goal names the row and the figure that tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.names import COPY, EXACT, PRODUCT, REFERENCE, WHOLE
from benchmarks.gpu.run import MEASURED, NOT_RUN, Row

MET, NOT_MET = "met", "not met"


@dataclass(frozen=True)
class Goal:
    """A figure of a row and its limit.

    Attributes:
        figure: the path to it in the row.
        at_least, at_most: one of the two.
    """

    text: str
    part: str
    row: str
    figure: tuple[str, ...]
    at_least: float | None = None
    at_most: float | None = None

    def judge(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The goal, what was reached, and whether that is met."""
        limit = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        row = self._row(rows)
        reached = None if row is None else self._reached(row)
        state = NOT_RUN
        if reached is not None:
            enough = self.at_least is None or reached >= self.at_least
            small = self.at_most is None or reached <= self.at_most
            state = MET if enough and small else NOT_MET
        found = {"reached": reached, "state": state, "backend": (row or {}).get("backend")}
        return {"goal": self.text, "wanted": limit, **found}

    def _row(self, rows: Sequence[Row]) -> Row | None:
        wanted = self.part, self.row, MEASURED
        found = (row for row in rows if (row["part"], row["name"], row["state"]) == wanted)
        return next(found, None)

    def _reached(self, row: Row) -> float | None:
        value: Any = row
        for key in self.figure:
            value = value.get(key, {})
        return value if isinstance(value, int | float) else None


def _times(rival: str) -> tuple[str, ...]:
    return ("beside", rival, "ratio")


def _goals() -> tuple[Goal, ...]:
    sums = "second moment, {}, d = {:,}: times torch's full product"
    products = [
        Goal(sums.format(kind, d), "second_moment", f"{kind}, d = {d}", _times(PRODUCT), least)
        for kind, least in (("bfloat16", 1.4), ("float32", 2.5), ("tf32", 1.3))
        for d in (6400, 14336)
    ]
    solves = []
    for metric in ("float32 factor", "float32 inverse"):
        title, row = f"solve and apply, GPT-J, {metric}", f"solve and apply, gpt-j-6b, {metric}"
        share, faster = f"{title}: share of a copy's bandwidth", f"{title}: times the reference"
        solves.append(Goal(share, "rank_one", row, _times(COPY), 0.8))
        solves.append(Goal(faster, "rank_one", row, _times(REFERENCE), 3.0))
    warm = []
    for precision, seconds in (("tf32", 0.12), ("float32", 0.3)):
        title, row = f"GPT-2 XL, warm edit, {precision}", f"warm edit, {precision}"
        warm.append(Goal(f"{title}: s", "gpt2-xl", row, ("median_s",), at_most=seconds))
        loop = f"{title}: times the whole-model loop"
        warm.append(Goal(loop, "gpt2-xl", row, _times(WHOLE), 6.0))
    llama = "Llama-3-8B, warm edit, bfloat16: s"
    warm.append(
        Goal(llama, "llama-3-8b", "warm edit, bfloat16", ("median_s",), at_most=0.3),
    )
    windows = [
        Goal(
            f"{title}, windows of 16, {precision}: times exact order",
            part,
            f"windows of 16, {precision}",
            _times(EXACT),
            3.0,
        )
        for part, title, precision in (
            ("gpt2-xl", "GPT-2 XL", "tf32"),
            ("llama-3-8b", "Llama-3-8B", "bfloat16"),
        )
    ]
    return (*products, *solves, *warm, *windows)


GOALS = _goals()
