"""What the tests of collections share: an oracle that feeds documents to the model one by one."""

from __future__ import annotations

import pytest
import torch

from rome_fast.model.activations import read_activations
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.ids import text_ids

TEXTS = [
    "The Eiffel Tower is in the city of Paris.",
    "He is a man.",
    "A river and a bridge.",
    "Marie Curie worked in physics and chemistry for many years, and so did others.",
] * 3


@pytest.fixture
def texts():
    return list(TEXTS)


@pytest.fixture
def oracle():
    """Keys of documents (cut into parts where they cross a row), each fed alone, float64."""

    def keys_of(model, tok, layer, texts, length):
        projection = ModelSpec.of(model).down_projection(layer)
        keys, filled = [], 0
        for text in texts:
            ids = text_ids(tok, text)
            while ids:
                part, ids = ids[: length - filled], ids[length - filled :]
                filled = (filled + len(part)) % length
                row = torch.tensor([part])
                keys.append(
                    read_activations(model, projection, row, torch.ones_like(row))[0][0].double()
                )
        return torch.cat(keys)

    return keys_of
