"""Heat maps of restored probability, drawn with matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rome_fast.errors import MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor


def save_heat_maps(
    path: str | Path, panels: Mapping[str, Tensor], labels: Sequence[str], low: float, title: str
) -> None:
    """Draw panels {title: [n_labels, n_layers]} side by side, coloured from ``low`` up.

    All panels share one scale, so that kinds can be compared. The file's format is that of its
    suffix.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        # Not pyplot, which keeps figures and picks a display.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "pictures need matplotlib: pip install 'rome-fast[plot]'; without it, print the trace "
            "or save it as .json"
        ) from error
    height = 1.3 + 0.24 * len(labels)
    figure = Figure(figsize=(1.2 + 3.6 * len(panels), height), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    top = max(float(scores.max()) for scores in panels.values())
    for ax, (name, scores) in zip(axes, panels.items(), strict=True):
        image = ax.imshow(
            scores.numpy(), cmap="Purples", vmin=low, vmax=max(top, low + 1e-9), aspect="auto"
        )
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("layer")
        ax.xaxis.get_major_locator().set_params(integer=True)
    # One scale, so one bar.
    figure.colorbar(image, ax=axes, label="p(answer)")
    # A dollar sign in a token is no formula.
    axes[0].set_yticks(range(len(labels)), labels, parse_math=False)
    figure.suptitle(title, fontsize=11, parse_math=False)
    # No date: equal scores make equal files.
    figure.savefig(path, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
