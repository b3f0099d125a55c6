"""The pictures of the page as inline SVG; colours come from the page, for light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

_WIDTH, _HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 28, 16, 44


class _Canvas:
    """An SVG with axes; ``at`` maps data to places in it."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self._x, self._y = x_range, y_range
        self._parts: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self._x, self._y
        across = (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        up = (y - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + across, 1), round(_HEIGHT - _BOTTOM - up, 1)

    def add(self, part: str) -> None:
        self._parts.append(part)

    def axes(
        self,
        x_ticks: Sequence[tuple[float, str]],
        y_ticks: Sequence[tuple[float, str]],
        x_label: str,
    ) -> None:
        for y, text in y_ticks:
            left, at = self.at(self._x[0], y)
            self.add(f'<line class="grid" x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>')
            self.add(f'<text x="{left - 6}" y="{at + 4}" text-anchor="end">{text}</text>')
        for x, text in x_ticks:
            at, bottom = self.at(x, self._y[0])
            self.add(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        self.add(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{x_label}</text>')

    def svg(self, description: str) -> Markup:
        """The whole picture; it needs no escaping, as its texts are numbers and fixed words."""
        body = "".join(self._parts)
        return Markup(
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{description}">'
            f"{body}</svg>"
        )


def retention_curve(points: Sequence[tuple[int, float]]) -> Markup:
    """Share of the edits made so far that are still said, against their number."""
    last = points[-1][0]
    canvas = _Canvas((0, last), (0, 1))
    step = _round_step(last / 6)
    ticks = [(float(n), f"{n:,}") for n in range(0, last + 1, step)]
    canvas.axes(ticks, [(y / 4, f"{25 * y} %") for y in range(5)], "edits in the model")
    places = [canvas.at(n, share) for n, share in points]
    line = " ".join(f"{x},{y}" for x, y in places)
    canvas.add(f'<polyline class="line" points="{line}"/>')
    for (x, y), (n, share) in zip(places, points, strict=True):
        canvas.add(
            f'<circle class="dot" cx="{x}" cy="{y}" r="4"><title>{n} edits: {share:.1%}</title>'
            "</circle>"
        )
    return canvas.svg("retention curve")


def norm_histogram(norms: Sequence[float]) -> Markup:
    """How many edits changed the weight by how much of its norm."""
    bins = min(24, max(6, round(math.sqrt(len(norms)))))
    counts, edges = np.histogram(norms, bins=bins, range=(0.0, max(norms) or 1.0))
    x_step = _round_step(1e6 * float(edges[-1]) / 6) / 1e6
    most = int(counts.max())
    canvas = _Canvas((0.0, float(edges[-1])), (0.0, float(most)))
    x_ticks = [(x, f"{100 * x:.3g} %") for x in np.arange(0, edges[-1], x_step).tolist()]
    step = _round_step(most / 4)
    canvas.axes(
        x_ticks,
        [(float(n), str(n)) for n in range(0, most + 1, step)],
        "norm of the update, of the weight's",
    )
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        (x0, y0), (x1, y1) = canvas.at(float(low), 0.0), canvas.at(float(high), float(count))
        canvas.add(
            f'<rect class="bar" x="{x0 + 1}" y="{y1}" width="{max(x1 - x0 - 2, 1):.1f}" '
            f'height="{y0 - y1:.1f}"><title>{low:.1%} to {high:.1%}: {count}</title></rect>'
        )
    return canvas.svg("histogram of update norms")


def _round_step(rough: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ... from ``rough`` on."""
    power = 10 ** math.floor(math.log10(max(rough, 1)))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= rough)
