"""The prompts of edits about other subjects: what an edit should leave alone, of its own kind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rome_fast.model.activations import read_activations
from rome_fast.prompt.ids import all_text_ids, pad_right
from rome_fast.prompt.request import SLOT

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.editor import Editor
    from rome_fast.types import EditRequest

# Names of one forward, and what stands before them: no subject opens a text.
_AT_ONCE, _BEFORE = 64, "He met"


def about_others(requests: Sequence[EditRequest], n: int, drawn: random.Random) -> list[str]:
    """Prompts of ``n`` of the requests, in turn if there are fewer, each about another subject."""
    names = other_names(requests)
    rounds = [drawn.sample(requests, len(requests)) for _ in range(-(-n // len(requests)))]
    chosen = [request for part in rounds for request in part][:n]
    return [about(request, drawn.choice(names)) for request in chosen]


def about(request: EditRequest, name: str) -> str:
    """The request's prompt about another subject."""
    return request.prompt.replace(SLOT, name).rstrip(" ")


def other_names(requests: Sequence[EditRequest]) -> list[str]:
    """Subjects of many kinds that none of the requests is about."""
    edited = {name for request in requests for name in request.names}
    return [name for name in _names() if name not in edited]


@torch.no_grad()
def where_heard(editor: Editor, names: Sequence[str], rows: Tensor, most: int) -> list[list[str]]:
    """For each edit the names at whose ends it is heard most.

    Args:
        rows: [n, d_key], what an edit's share of the output is read with.
    """
    shares = []
    for start in range(0, len(names), _AT_ONCE):
        texts = [f"{_BEFORE} {name}" for name in names[start : start + _AT_ONCE]]
        input_ids, mask = pad_right(all_text_ids(editor.tok, texts))
        keys, _ = read_activations(editor.model, editor.projection, input_ids, mask)
        ends = keys[torch.arange(len(mask)), mask.sum(1) - 1].to(rows)
        shares.append((ends @ rows.T).abs())
    heard = torch.cat(shares)
    order = heard.topk(min(most, len(names)), dim=0).indices.T.tolist()
    return [[names[i] for i in row] for row in order]


@cache
def _names() -> tuple[str, ...]:
    """Subjects of many kinds."""
    return tuple(Path(__file__).with_name("names.txt").read_text("utf-8").splitlines())
