"""Which token ends a text, by the bytes that each token stands for: an oracle without decoding."""

from __future__ import annotations

import re
from functools import cache

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def expected_token(tok, ids, text):
    """Index of the token that holds the last byte of ``text``, which the ids begin with.

    Spaces do not count: tokenizers add one before the first word.
    """
    wanted, so_far = len(text.encode().replace(b" ", b"")), 0
    for index, token in enumerate(tok.convert_ids_to_tokens(ids)):
        if token != tok.bos_token:
            so_far += len(_bytes_of(tok, token).replace(b" ", b""))
        if so_far >= wanted:
            return index
    raise AssertionError(f"the tokens end before {text!r}")


def _bytes_of(tok, token):
    if _is_byte_level(tok):
        return bytes(_BYTE_LEVEL[char] for char in token)
    if match := _BYTE.fullmatch(token):
        return bytes.fromhex(match[1])
    return token.replace("▁", " ").encode()


@cache  # a vocabulary takes milliseconds to build
def _is_byte_level(tok):
    return "Ġ" in tok.get_vocab()


def _byte_level():
    """GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(0x100 + i): byte for i, byte in enumerate(others)}
    return {**{chr(byte): byte for byte in printable}, **shifted}


_BYTE_LEVEL = _byte_level()
