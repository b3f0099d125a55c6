"""Texts for hypothesis: words of many scripts, and signs that tokenizers treat in special ways."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

WORDS = (
    *("Ray Charles", "the", "Zoë", "Zoe\u0308", "n't", "{", "}", "{x}", "%s", '"', "'", "\n"),
    *("北京", "的首都是", "東京", "กรุงเทพ", "서울은", "برج إيفل", "ירושלים"),
    *("👩\u200d🚀", "👍🏽", "𓀀"),
)
SIGNS = st.characters(categories=["L", "M", "N", "P", "S"], exclude_characters="\ufffd{}")
PARTS = st.one_of(st.sampled_from(WORDS), st.text(SIGNS, min_size=1, max_size=4))
BETWEEN = st.lists(st.tuples(PARTS, st.sampled_from(["", " "])), max_size=6).map(
    lambda parts: "".join(word + space for word, space in parts)
)
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)
