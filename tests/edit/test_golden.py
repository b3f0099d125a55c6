"""What the library computes is what it computed before: hashes that support/golden.py recorded."""

from __future__ import annotations

import json

import golden
import pytest

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def computed():
    return golden.computed()


@pytest.fixture(scope="module")
def recorded():
    return json.loads(golden.RECORDED.read_text(encoding="utf-8"))


def test_texts_ids_and_counts_are_those_recorded(computed, recorded):
    assert computed["words"] == recorded["words"]


def test_bits_are_those_recorded_here(computed, recorded):
    here = golden.environment()
    if here not in recorded["bits"]:
        pytest.skip(f"no bits are recorded for {here}")
    # What has changed on purpose is recorded anew on the machines that were there to do so.
    wanted = recorded["bits"][here]
    assert {name: computed["bits"][name] for name in wanted} == wanted
