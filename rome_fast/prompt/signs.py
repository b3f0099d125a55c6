"""Signs that the next word follows without a space: in numbers, code, addresses and paths."""

from __future__ import annotations

import re
import unicodedata

# A line with one of these is code.
_CODE = re.compile(
    r"[=;{}]|\w\(|::|->|>>>|^\s*(?:import|from|return|def|class|print|await|let|const|var)\b"
)
_ADDRESS = re.compile(r"\w://|^www\.")
_PATH = re.compile(r"\w://|^www\.|[/@\\]")
_UNITS = frozenset("CFKNESW")


def glues(prompt: str, target: str) -> bool:
    """Whether the prompt ends in a sign that the target follows at once.

    Where text does both, what stands before the sign decides: ``x=`` and ``x =``, ``5-`` and
    ``5 -``. A sign that opens a line, as in ``# Title`` and ``$ ls``, is followed by a space.
    """
    sign, before = prompt[-1], prompt[:-1]
    line = before.rpartition("\n")[2]
    stands_apart = not line or line[-1].isspace()
    is_number = target[0].isdigit()
    if unicodedata.category(sign) == "Sc":
        return is_number or bool(line.strip())
    if sign == "#":
        return is_number or (bool(line.strip("# ")) and not line[-1].isalnum())
    if sign == "_":
        return not line.endswith("__") or _is_code(line)
    if sign == "/":
        return not line.endswith("/") or line.endswith(":/")
    if sign in "@\\~":
        return True
    if sign in "=^":
        return not stands_apart
    if sign in "+-\u2212\xb1" and is_number:
        return stands_apart or line[-1].isdigit()
    if sign in "*<>" and is_number:
        return line[-1:].isdigit()
    if sign == "\xb0":
        return line[-1:].isdigit() and target.split()[0] in _UNITS
    return _goes_on(line, sign, target)


def _goes_on(line: str, sign: str, target: str) -> bool:
    """Whether a stop goes on with the target: of a number, an address, a path, a name in code."""
    word = f" {line}".rsplit(None, 1)[-1] if line.strip() else ""
    if not word or line[-1].isspace():
        return False
    if (sign in "?&:" and _ADDRESS.search(word)) or (sign == line[-1] == ":"):
        return True
    if sign != ".":
        return False
    if target[0].isdigit():
        return line[-1].isdigit()
    if target[0].isupper() and not _is_code(line):
        return False
    in_code = _is_code(line) and (line[-1].isalpha() or line[-1] in "_)]")
    return bool(_PATH.search(word)) or in_code


def _is_code(line: str) -> bool:
    return bool(_CODE.search(line))
