"""Ways to write many edits into one weight as pictures: the frontier, and what a spread foretells.

python -m benchmarks.session.policy_pictures docs/figures
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.session.policy_tables import policy_lines
from benchmarks.support.tables import Row, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = (80, 300, 1000)
# Okabe and Ito's colours, which the colour-blind can tell.
KINDS = {
    "joint": ("solved as one", "#0072B2", "o"),
    "values": ("solved as one, values x", "#56B4E9", "v"),
    "layers": ("solved as one in several layers", "#E69F00", "P"),
    "others": ("published, one a step", "#D55E00", "s"),
    "neuron": ("neurons", "#009E73", "^"),
    "gate": ("gates", "#CC79A7", "D"),
}


def kind_of(line: Row) -> str:
    """Which of KINDS a line is of."""
    if "spreads" in line:
        return "layers"
    first = line["form"].split(",")[0].split(" ")[0]
    return first if first in KINDS else "others"


def frontier(path: Path) -> None:
    """Neighbours against the edits that hold, a panel for each number of edits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.3), layout="constrained")
    arena = read("arena")["lines"]
    layers = [line for line in read("policy-layers")["lines"] if len(line["spreads"]) > 1]
    levels = {"unedited": ("--", "unedited"), "weight, each alone": (":", "rank-one, each alone")}
    panels = figure.subplots(1, len(SIZES), sharex=True, sharey=True)
    for axes, n in zip(panels, SIZES, strict=True):
        beside = [line for line in [*arena, *layers] if line["n"] == n and _is_drawn(line)]
        for line in [*policy_lines(n), *beside]:
            title, colour, marker = KINDS[kind_of(line)]
            at = 100 * line["holds"], 100 * line["NS_untouched"]
            axes.plot(*at, marker, color=colour, ms=5, label=title)
        for line in arena:
            if line["form"] in levels:
                style, title = levels[line["form"]]
                axes.axhline(100 * line["NS_untouched"], color="0.5", lw=0.8, ls=style, label=title)
        axes.set_title(f"{n:,} edits", fontsize=10)
        axes.set_xlabel("edits that hold, %")
    panels[0].set_ylabel("neighbours, %")
    _legend_below(figure, panels)
    figure.savefig(path, metadata={"Date": None})


def _is_drawn(line: Row) -> bool:
    return line["form"] in KINDS or "spreads" in line


def _legend_below(figure: object, panels: object) -> None:
    handles: dict[str, object] = {}
    for axes in panels:  # type: ignore[attr-defined]
        found, names = axes.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    order = [title for title, *_ in KINDS.values() if title in handles]
    order += [title for title in handles if title not in order]
    figure.legend(  # type: ignore[attr-defined]
        [handles[title] for title in order], order, loc="outside lower center", ncol=4, fontsize=8
    )


def spread(path: Path) -> None:
    """KL and perplexity of held text against the spread, each policy a mark."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, 2))
    for n, marker in ((80, "o"), (300, "s")):
        rows = [r for r in policy_lines(n) if "spread" in r]
        for axis, name in zip(axes, ("kl", "perplexity"), strict=True):
            spreads = [r["spread"] for r in rows]
            axis.plot(spreads, [r[name] for r in rows], marker, ms=4, label=f"{n} edits")
            axis.set_xlabel("spread")
            axis.set_xscale("log")
    axes[0].set_ylabel("KL, nats")
    axes[0].set_yscale("log")
    axes[1].set_ylabel("perplexity, relative")
    axes[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    frontier(folder / "frontier.svg")
    spread(folder / "spread.svg")
