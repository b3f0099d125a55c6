"""Measures every miniature family, and prints the page of models from such measurements.

    python tools/models_table.py --measure FILE        with the transformers that is installed
    python tools/models_table.py FILE [FILE ...]       prints docs/models.md

`make models` does both, with the newest and the oldest transformers that are tested.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from family_checks import edits_and_undoes, exactness  # noqa: E402
from graph_checks import graph_obstacle  # noqa: E402
from mixtures import MIXTURES  # noqa: E402
from tiny import metaspace_tokenizer  # noqa: E402
from zoo import ZOO, Member  # noqa: E402

from rome_fast.errors import UnsupportedModelError  # noqa: E402
from rome_fast.model.spec import ModelSpec  # noqa: E402

Row = dict[str, Any]

INTRO = """\
# Models

Nothing here depends on a model's name: its parts are found by structure (`rome-fast probe`), and
any dense decoder of transformers should work. These were tested, each as a miniature of random
weights made from its configuration, with the versions of transformers in the table. Made by
`make models`.

- **layer found**: the matrix that an edit of the layer in question writes to.
- **exact**: the largest relative difference of losses, v\\* and the update from those of an
  independent implementation that runs the whole model in float64; the limit is 1e-4, in float32.
  "whole model": exact too, but without the shortened forward, so slower.
- **edit**: the edit makes the target likelier; **undo**: it gives back every bit.
- **graph**: whether a GPU can run a step of the search as a CUDA graph, found by an emulation of
  the capture with the newest of these transformers. "no": its forward asks for numbers that the
  device has computed, as routers of experts do, or the whole model runs in every step; the search
  then runs without a graph, more slowly.
- "-": this version of transformers does not have the family, or does not run it in float64.
"""
REFUSED = """\

## Mixtures of experts

A layer that routes its tokens is refused, because ROME is defined for one dense matrix. Dense
layers of the same model can be edited, and an expert that all tokens share on request
(`hparams.replace(shared_expert=True)`); both are in the table above. What the others say:
"""


def measure() -> Row:
    """A row a family, by name."""
    tok = metaspace_tokenizer()
    rows = {member.name: _measured(member, tok) for member in tqdm(ZOO)}
    return {
        "transformers": transformers.__version__,
        "families": {name: row for name, row in rows.items() if row},
        "refused": {name: _refusal(name, len(tok)) for name in MIXTURES},
    }


def _measured(member: Member, tok: Any) -> Row | None:
    model = member.build(len(tok))
    if model is None:
        return None
    where = {"layer": member.layer, "shared_expert": member.shared_expert}
    projection = ModelSpec.of(model).down_projection(member.layer, member.shared_expert)
    row: Row = {"found": projection.name, "class": type(projection.module).__name__}
    if member.has_oracle:
        found = exactness(model, tok, member.request, **where)
        row["exact"] = max(found.losses, found.value, found.update)
        row["shortened"] = not found.obstacle
    row["edit"], row["undo"] = edits_and_undoes(model, tok, **where)
    row["graph"] = graph_obstacle(model, tok, member.request, **where)
    return row


def _refusal(name: str, vocabulary: int) -> str | None:
    """What the first layer that routes its tokens says."""
    try:
        model = MIXTURES[name].build(vocabulary)
    except AttributeError:  # this transformers does not have it
        return None
    spec = ModelSpec.of(model)
    for layer in range(spec.n_layers):
        try:
            spec.down_projection(layer)
        except UnsupportedModelError as error:
            return str(error)
    raise AssertionError(f"{name} has no layer that is refused")


def page(reports: Sequence[Row]) -> str:
    """docs/models.md."""
    versions = [report["transformers"] for report in reports]
    measured = [f"exact, edit, undo: {version}" for version in versions]
    head = ["family", "layer found", *measured, "graph"]
    lines = [INTRO, f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for member in ZOO:
        rows = [report["families"].get(member.name) for report in reports]
        newest = next((row for row in rows if row), None)
        if newest:
            found = f"`{newest['found']}`, {newest['class']}"
            graph = "no" if newest["graph"] else "yes"
            lines.append(f"| {' | '.join([member.name, found, *map(_cell, rows), graph])} |")
    lines += [REFUSED, "| family | its first layer that routes |", "|---|---|"]
    for name in MIXTURES:
        said = next((r["refused"][name] for r in reports if r["refused"].get(name)), None)
        if said:
            lines.append(f"| {name} | {said} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    exact = f"{row['exact']:.0e}" if "exact" in row else "-"
    slower = "" if row.get("shortened", True) else " (whole model)"
    return ", ".join([exact + slower, *("yes" if row[x] else "NO" for x in ("edit", "undo"))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="*", type=Path, help="the newest first")
    parser.add_argument("--measure", type=Path, help="where to write the measurements")
    args = parser.parse_args()
    if args.measure:
        warnings.simplefilter("ignore")
        args.measure.parent.mkdir(parents=True, exist_ok=True)
        args.measure.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    else:
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in args.reports]
        sys.stdout.write(page(reports))


if __name__ == "__main__":
    main()
