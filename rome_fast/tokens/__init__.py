"""Request -> token ids, and the index of the token where the fact is looked up."""

from rome_fast.tokens.encode import TokenizedEdit, encode, passage_of
from rome_fast.tokens.ids import all_text_ids, decode, pad_right, pieces, text_ids
from rome_fast.tokens.lookup import Passage, locate_subject
from rome_fast.tokens.target import Continuation, continuations, find_target_ids, prompt_ids

__all__ = [
    "Continuation",
    "Passage",
    "TokenizedEdit",
    "all_text_ids",
    "continuations",
    "decode",
    "encode",
    "find_target_ids",
    "locate_subject",
    "pad_right",
    "passage_of",
    "pieces",
    "prompt_ids",
    "text_ids",
]
