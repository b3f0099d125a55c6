"""The health of a Session as a curve over its edits: data, or a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rome_fast.atomic_files import write_text
from rome_fast.errors import MissingExtraError

if TYPE_CHECKING:
    from rome_fast.session.health import Health


def save_checks(checks: Sequence[Health], path: Path) -> None:
    """Write ``.json``, or draw a picture in the format of the suffix.

    Raises:
        MissingExtraError: a picture was asked for, and matplotlib is not installed.
    """
    if path.suffix == ".json":
        write_text(path, json.dumps([check.to_json() for check in checks], indent=1))
        return
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "pictures need matplotlib: pip install 'rome-fast[plot]'; a path that ends in .json "
            "takes the numbers"
        ) from error
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    edits = [check.n_edits for check in checks]
    for name in ("retention", "neighbourhood"):
        shares = [getattr(check, name) for check in checks]
        if any(share is not None for share in shares):
            percent = [None if share is None else 100 * share for share in shares]
            above.plot(edits, percent, marker="o", markersize=3, label=name)
    above.set_ylabel("percent")
    above.set_ylim(0, 103)
    above.legend()
    below.plot(edits, [check.perplexity for check in checks], marker="o", markersize=3)
    below.set_ylabel("perplexity, relative")
    below.set_xlabel("edits that hold")
    # No date: equal numbers make equal files.
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
