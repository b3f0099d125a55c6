"""Where a text names its subject: as a whole word rather than inside one, in any normal form."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable
from functools import partial

Place = tuple[int, int]

_decomposed: Callable[[str], str] = partial(unicodedata.normalize, "NFD")


def find_subject(text: str, subject: str) -> Place | None:
    """(start, end) of the last place that is no part of a longer word, else of the last place.

    Where the subject is only there in another normal form of Unicode, that is its place.
    """
    found = _places(text, subject, str) or _places(text, subject, _decomposed)
    whole = [place for place in found if not cuts_a_word(text, place)]
    return (whole or found)[-1] if found else None


def cuts_a_word(text: str, place: Place) -> bool:
    """Whether letters or digits go on beyond one of its ends.

    Only scripts with capital letters are looked at: the others are written without spaces, or put
    particles and articles to their nouns.
    """
    start, end = place
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    return any(map(_joined, (before, text[end - 1]), (text[start], after)))


def nearest(text: str, subject: str) -> str:
    """What to say of a text that does not hold the subject; "" where nothing is like it."""
    same_letters = _places(text, subject, str.casefold)
    if same_letters:
        start, end = same_letters[-1]
        return f" (nearest match: {text[start:end]!r} at {start}; the case differs)"
    match = difflib.SequenceMatcher(None, text, subject, autojunk=False).find_longest_match()
    if match.size >= 3:
        alike = text[match.a : match.a + match.size].strip()
        return f" (nearest match: {alike!r} at {match.a})"
    return ""


def _places(text: str, wanted: str, fold: Callable[[str], str]) -> list[Place]:
    """Where the text is as wanted when all characters are folded; one may fold to several."""
    folded = [fold(char) for char in text]
    # Where each character begins in the folded text; no place begins or ends inside of one.
    index_at, length = {}, 0
    for index, part in enumerate(folded):
        index_at[length] = index
        length += len(part)
    index_at[length] = len(text)
    whole, wanted = "".join(folded), "".join(map(fold, wanted))
    found, start = [], whole.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        if start in index_at and end in index_at:
            found.append((index_at[start], index_at[end]))
        start = whole.find(wanted, start + 1)
    return found


def _joined(left: str, right: str) -> bool:
    """Whether two neighbours are of one word."""
    return bool(left and right) and _is_of_a_word(left) and _is_of_a_word(right)


def _is_of_a_word(char: str) -> bool:
    is_cased = char.lower() != char.upper()
    return is_cased or char.isdigit() or char == "_" or unicodedata.category(char)[0] == "M"
