"""Draws docs/session-curves.svg from the committed results of session_curves.py.

python -m benchmarks.session.session_picture
"""

from __future__ import annotations

import json

from matplotlib.figure import Figure

from benchmarks.support.results import RESULTS, ROOT

CURVES = RESULTS / "session-curves.json"
PICTURE = ROOT / "docs" / "session-curves.svg"
PANELS = {
    "success": "edits that hold, percent",
    "paraphrase": "paraphrases, percent",
    "neighbours": "other subjects unchanged, percent",
    "perplexity": "perplexity, relative",
}
# What a reader compares: the others are in the table.
SHOWN = {
    "kmeng01's update": "tab:red",
    "r-ROME": "tab:orange",
    "both_keys": "tab:gray",
    "+ retain": "tab:blue",
    "+ stop_loss": "tab:green",
    "Session": "black",
}


def main() -> None:
    report = json.loads(CURVES.read_text(encoding="utf-8"))
    figure = Figure(figsize=(9, 6), layout="constrained")
    for ax, (key, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for way, colour in SHOWN.items():
            rows = [row for row in report["points"] if row["way"] == way]
            width = 2.5 if way == "Session" else 1.3
            edits = [row["edits"] for row in rows]
            ax.plot(edits, [row[key] for row in rows], color=colour, linewidth=width, label=way)
        ax.axhline(report["alone"][key], color="tab:gray", linestyle=":", linewidth=1)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("edits")
    figure.axes[0].legend(fontsize=8, loc="lower left")
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
