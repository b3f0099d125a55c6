"""For the reference of `make docs`: "a, b: text" in a docstring's section describes a and b.

Griffe reads one name a line.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_NAMES = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)


class SeparateNames(griffe.Extension):
    """Gives each name the text that they share."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for everything that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = _NAMES.sub(_separated, obj.docstring.value)


def _separated(match: re.Match[str]) -> str:
    indent, names, text = match.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
