"""The value-norm anchor: solved values get the norm of the first ones."""

import pytest
import torch
from helpers import SEQUENTIAL

from rome_fast import Session
from rome_fast.model.activations import read_activations
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.ids import text_ids


def value_of(model, tok, request):
    """What the matrix writes at the subject's last token, which ends the prompt."""
    projection = ModelSpec.of(model).down_projection(1)
    text = request["prompt"].replace("{}", request["subject"])
    ids = torch.tensor([text_ids(tok, text)])
    return read_activations(model, projection, ids, torch.ones_like(ids))[1][0, -1]


def test_values_after_the_pilots_get_their_mean_norm(tiny, options, requests):
    model, tok = tiny
    with Session(model, tok, **options, anchor=2, variant="prompt_key", **SEQUENTIAL) as session:
        for request in requests:
            session.edit(request)
            numbers = session.log.edits[-1].numbers
            value = value_of(model, tok, request)
            assert float(value.norm()) == pytest.approx(numbers["value_norm"], rel=1e-3)
        norms = [edit.numbers["value_norm"] for edit in session.log.edits]
    mean = sum(norms[:2]) / 2
    assert norms[2:] == pytest.approx([mean] * 4, rel=1e-5)
    assert norms[0] != pytest.approx(norms[1], rel=1e-3)


def test_without_it_norms_are_their_own(tiny, options, requests):
    model, tok = tiny
    with Session(model, tok, **options, **SEQUENTIAL) as session:
        session.edit_many(requests, progress=False)
        norms = [edit.numbers["value_norm"] for edit in session.log.edits]
    assert len({round(norm, 4) for norm in norms}) == len(norms)
