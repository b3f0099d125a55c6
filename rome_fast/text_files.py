"""What to say of a text file that is not UTF-8."""

from __future__ import annotations

import codecs
from pathlib import Path

# The marks that files of other encodings begin with; UTF-32's begins as UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def not_utf8(path: Path, error: UnicodeError) -> str:
    """``is UTF-16 ...`` where its mark says so, as PowerShell writes it, else what was found."""
    with path.open("rb") as file:
        start = file.read(4)
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return f"is {name}: save it as UTF-8"
    return f"is not UTF-8: {error}"
