"""Packed rows, and what keeps the documents of a row apart in different families."""

from __future__ import annotations

import pytest
import torch
from families import SEPARATING, tiny_family

from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.forward import KeyReader
from rome_fast.moment.collect.packing import Row, block_mask, pack_rows


@pytest.mark.parametrize("family", SEPARATING)
def test_documents_of_a_row_do_not_see_each_other(family):
    model = tiny_family(family)
    projections = [ModelSpec.of(model).down_projection(layer) for layer in (0, 2)]
    reader = KeyReader(model, projections, separate=True, rows_at_once=4)
    assert reader.documents == "separate", "no way of keeping documents apart was found"
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(60, (n,), generator=generator).tolist() for n in (9, 1, 5, 14, 3, 8)]
    rows = list(pack_rows(documents, 20, None))
    assert [len(row) for row in rows] == [20, 20]
    alone = [Row(0, row, list(range(len(row)))) for row in (*documents[:3], documents[3][:5])]
    alone += [Row(0, row, list(range(len(row)))) for row in (documents[3][5:], *documents[4:])]
    packed, separate = {}, {}
    reader.read(rows, lambda p, keys, _: packed.setdefault(p.layer, []).append(keys))
    reader.read(alone, lambda p, keys, _: separate.setdefault(p.layer, []).append(keys))
    for layer in (0, 2):
        torch.testing.assert_close(
            torch.cat(packed[layer]), torch.cat(separate[layer]), rtol=1e-4, atol=1e-5
        )


def test_where_the_model_does_not_allow_it_rows_are_joined():
    """BLOOM builds its ALiBi distances from a two-dimensional mask only."""
    model = tiny_family("Bloom")
    projection = ModelSpec.of(model).down_projection(1)
    reader = KeyReader(model, [projection], separate=True, rows_at_once=1)
    assert reader.documents == "joined"


def test_pack_rows_fills_rows_and_restarts_positions():
    rows = list(pack_rows([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]], 4, None))
    assert [row.ids for row in rows] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert [row.positions for row in rows] == [[0, 1, 2, 0], [0, 1, 2, 3], [0, 1]]
    assert [row.index for row in rows] == [0, 1, 2]
    for budget in range(1, 12):
        ids = [
            i for row in pack_rows([[1, 2, 3], [4], list(range(5, 11))], 4, budget) for i in row.ids
        ]
        assert ids == list(range(1, min(budget, 10) + 1))
    assert list(pack_rows([], 4, None)) == []


def test_block_mask_shows_a_token_its_own_document_up_to_itself():
    mask = block_mask(torch.tensor([[0, 1, 0, 1, 2]]), torch.float32)
    assert mask.shape == (1, 1, 5, 5)
    visible = [[int(v == 0) for v in row] for row in mask[0, 0]]
    assert visible == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
