"""docs/figures/rooms.svg: the rooms that an edit goes through, and who imports whom.

    python tools/rooms_picture.py > docs/figures/rooms.svg

The arrows are the imports of this checkout; tests/project/test_architecture.py compares them with
those of the committed picture.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, BOX = 760, 640, (190, 56)
_CENTRE = 380
# Room -> (left, top, what it does on the way of an edit). What every room uses is left out:
# errors, types, hparams, timings.
ROOMS = {
    "edit": (285, 16, "1  the verbs: edit, edit_many"),
    "editor": (285, 106, "2  the order of the steps"),
    "update": (285, 196, "6  (u, v) into W; undo"),
    "value": (285, 286, "5  k* and v*"),
    "prompt": (6, 386, "4, 7  tokens; what it says"),
    "moment": (560, 386, "3  C = E[k kᵀ]"),
    "model": (285, 476, "2  open, find W, step in"),
    "ops": (285, 568, "kernels, or plain torch"),
}
# How far an arrow between two rooms of one column bends to the side (negative: left).
BENDS = {
    ("edit", "model"): -100,
    ("editor", "model"): -70,
    ("editor", "value"): -22,
    ("update", "model"): -42,
    ("update", "ops"): 76,
    ("value", "ops"): 40,
}
STYLE = """
  .box { fill: #fff; stroke: #3f51b5; stroke-width: 1.5 }
  .room { font: bold 15px sans-serif; fill: #1a237e }
  .does { font: 12px sans-serif; fill: #333 }
  path { fill: none; stroke: #7986cb; stroke-width: 1.3; marker-end: url(#head) }
"""


def imports(rooms: list[str]) -> set[tuple[str, str]]:
    """(importer, imported) between these rooms, type annotations included."""
    graph = grimp.build_graph("rome_fast", cache_dir=None)
    found = set()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            pair = _room(module), _room(other)
            if pair[0] != pair[1] and set(pair) <= set(rooms):
                found.add(pair)
    return found


def _room(module: str) -> str:
    return f"{module}..".split(".")[1]


def _arrow(start: str, end: str) -> str:
    """Down in one column, past the rooms in between; or aside and down into another column."""
    (x0, y0), (x1, y1) = (
        (ROOMS[r][0] + BOX[0] / 2, ROOMS[r][1] + BOX[1] / 2) for r in (start, end)
    )
    half_width, half_height = BOX[0] / 2, BOX[1] / 2
    if x0 == x1 and (start, end) not in BENDS:
        return f"M{x0},{y0 + half_height} V{y1 - half_height}"
    aside = half_width if x1 > x0 else -half_width
    if x0 == x1:
        bend = BENDS[start, end]
        side = x0 + (half_width if bend > 0 else -half_width)
        return f"M{side},{y0} C{side + bend},{y0} {side + bend},{y1} {side},{y1}"
    if y0 == y1:
        return f"M{x0 + aside},{y0} H{x1 - aside}"
    if x0 == _CENTRE:
        return f"M{x0 + aside},{y0} Q{x1},{y0} {x1},{y1 - half_height}"
    return f"M{x0},{y0 + half_height} Q{x0},{y1} {x1 - aside},{y1}"


def picture() -> str:
    """The whole file."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"',
        '     aria-label="The rooms that an edit goes through, and who imports whom">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7"',
        '  markerHeight="7" orient="auto"><polygon points="0,0 8,4 0,8" fill="#7986cb"/>',
        "</marker></defs>",
    ]
    for start, end in sorted(imports(list(ROOMS))):
        lines.append(f'<path data-from="{start}" data-to="{end}" d="{_arrow(start, end)}"/>')
    for room, (x, y, does) in ROOMS.items():
        lines += [
            f'<rect class="box" x="{x}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="7"/>',
            f'<text class="room" x="{x + 14}" y="{y + 23}">{room}</text>',
            f'<text class="does" x="{x + 14}" y="{y + 43}">{does}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.stdout.write(picture())
