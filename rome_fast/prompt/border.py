"""Whether a space belongs between a prompt and its target, by script and characters there."""

from __future__ import annotations

import re
import unicodedata

from rome_fast.prompt.signs import glues

# Scripts written without spaces between words. Korean is written with them.
_UNSPACED = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "BOPOMOFO",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "IDEOGRAPHIC",
    "FULLWIDTH",
    "HALFWIDTH KATAKANA",
)
_APOSTROPHES, _HYPHENS = "'\u2019", "-\u2010\u2011\u2013\u2014"
# Besides closing brackets and quotes; the last three are Arabic.
_STOPS = ".,;:!?%\u2026\u060c\u061b\u061f"
_OPEN_QUOTE = re.compile(r"(?:^|\s)['\u2018]")


def space_between(prompt: str, target: str) -> str:
    """``" "`` or ``""``; the target's own space, or the prompt's, is never doubled.

    Of spaces at the end of the prompt it matters only that there is one: behind a sign that text
    may follow with or without a space.
    """
    text = prompt.rstrip(" ")
    if not text or text[-1].isspace() or target[0].isspace():
        return ""
    # A combining mark has the script of the character that carries it.
    last = next((c for c in reversed(text) if not _is_mark(c)), "a")
    if _is_unspaced(last) or _is_unspaced(target[0]) or _opens(text) or _closes(target):
        return ""
    return "" if text == prompt and glues(text, target) else " "


def _is_mark(char: str) -> bool:
    return unicodedata.category(char).startswith("M")


def _is_unspaced(char: str) -> bool:
    in_cjk_punctuation = "\u3000" <= char <= "\u303f"
    return in_cjk_punctuation or unicodedata.name(char, "").startswith(_UNSPACED)


def _opens(prompt: str) -> bool:
    """Whether it ends in an opening bracket, mark or quote, a hyphen in a word, an apostrophe."""
    mark, before = prompt[-1], prompt[:-1]
    kind = unicodedata.category(mark)
    if kind == "Ps" or mark in "\xa1\xbf":
        return True
    if mark in _HYPHENS:
        return before[-1:].isalnum()
    if kind not in ("Pi", "Pf") and mark not in "\"'":
        return False
    if not before or before[-1].isspace() or unicodedata.category(before[-1]) in ("Ps", "Pi"):
        return True
    # An apostrophe, unless it ends a quotation.
    return mark in _APOSTROPHES and not _OPEN_QUOTE.search(before)


def _closes(target: str) -> bool:
    """Whether it begins with a mark, a closing bracket or quote, punctuation, or as in "'s"."""
    first, rest = target[0], target[1:]
    if _is_mark(first) or unicodedata.category(first) == "Pe":
        return True
    if rest[:1].isalnum():  # no punctuation, as in ".NET"
        return first in _APOSTROPHES and first not in rest
    return unicodedata.category(first) == "Pf" or first in _STOPS
