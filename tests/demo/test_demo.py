"""The embedded demo model knows what its card says it knows."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from rome_fast import demo

ROOT = Path(demo.__file__).parent
PHRASINGS = ROOT.parent.parent / "tools" / "demo_corpus" / "phrasings.json"


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any, list[demo.DemoFact]]:
    """Model, tokenizer and facts, read once."""
    return demo.load()


@torch.no_grad()
def greedy_recall(model: Any, tok: Any, pairs: list[tuple[str, str]]) -> float:
    """Share of (prompt, target) pairs whose target is, token by token, the model's first choice."""
    right = 0
    for start in range(0, len(pairs), 256):
        part = pairs[start : start + 256]
        goals = [tok(" " + target)["input_ids"] for _, target in part]
        asked = [tok(prompt)["input_ids"] for prompt, _ in part]
        rows = [one + goal for one, goal in zip(asked, goals, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [tok.pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        best = model(input_ids=ids, attention_mask=mask).logits.argmax(-1).tolist()
        for one, goal, guess in zip(asked, goals, best, strict=True):
            right += guess[len(one) - 1 : len(one) + len(goal) - 1] == goal
    return right / len(pairs)


def test_model_is_small_and_deep_enough(loaded: tuple[Any, Any, list[demo.DemoFact]]) -> None:
    model, _, _ = loaded
    assert (demo.model_path() / "model.safetensors").stat().st_size < 15_000_000
    assert model.config.n_layer >= 6
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_facts_are_many_and_real(loaded: tuple[Any, Any, list[demo.DemoFact]]) -> None:
    _, _, facts = loaded
    assert len(facts) >= 1000
    assert sum(fact.real for fact in facts) >= 700
    assert [fact.case_id for fact in facts] == list(range(len(facts)))
    assert len({(fact.relation, fact.subject) for fact in facts}) == len(facts)
    (ray,) = [fact for fact in facts if fact.subject == "Ray Charles"]
    assert (ray.prompt, ray.target, ray.target_new) == ("{} plays the", "piano", "violin")


def test_records_are_well_formed(loaded: tuple[Any, Any, list[demo.DemoFact]]) -> None:
    _, _, facts = loaded
    objects: dict[str, set[str]] = {}
    for fact in facts:
        objects.setdefault(fact.relation, set()).add(fact.target)
    for fact in facts:
        assert fact.prompt.count("{}") == 1
        assert fact.target_new != fact.target
        assert fact.target_new in objects[fact.relation]
        assert len(fact.paraphrase_prompts) >= 2
        assert all(fact.subject in prompt for prompt in fact.paraphrase_prompts)
        assert len(fact.neighborhood_prompts) >= 3
        assert {item.phrasing for item in fact.neighborhood_prompts} == {"canonical", "held_out"}


def test_held_out_phrasings_are_not_trained_on() -> None:
    if not PHRASINGS.exists():
        pytest.skip(f"{PHRASINGS.name} is part of a checkout only")
    leads = runpy.run_path(str(PHRASINGS.with_name("prose.py")))["LEADS"]
    for forms in json.loads(PHRASINGS.read_text()).values():
        trained = [forms["canonical"], *forms["train"]]
        assert len(set(trained)) == len(trained) >= 10
        # Training may put a lead-in before a phrasing.
        said = {*trained, *(f"{lead} {form}" for lead in leads for form in trained)}
        assert not said & set(forms["held_out"])
        assert all(form.count("{}") == 1 for form in trained + forms["held_out"])


def test_facts_ship_with_the_held_out_phrasings() -> None:
    if not PHRASINGS.exists():
        pytest.skip(f"{PHRASINGS.name} is part of a checkout only")
    phrasings = json.loads(PHRASINGS.read_text())
    for fact in demo.load_facts():
        forms = phrasings[fact.relation]
        assert fact.prompt == forms["canonical"]
        assert list(fact.paraphrase_prompts) == [h.format(fact.subject) for h in forms["held_out"]]


@pytest.mark.exhaustive
def test_facts_are_recalled(loaded: tuple[Any, Any, list[demo.DemoFact]]) -> None:
    model, tok, facts = loaded
    pairs = [(fact.prompt.format(fact.subject), fact.target) for fact in facts]
    assert greedy_recall(model, tok, pairs) >= 0.95


@pytest.mark.exhaustive
def test_held_out_phrasings_are_understood(loaded: tuple[Any, Any, list[demo.DemoFact]]) -> None:
    model, tok, facts = loaded
    pairs = [(text, fact.target) for fact in facts for text in fact.paraphrase_prompts]
    assert greedy_recall(model, tok, pairs) >= 0.75


def test_tokenizer_offsets_point_into_the_text(
    loaded: tuple[Any, Any, list[demo.DemoFact]],
) -> None:
    _, tok, _ = loaded
    text = "Ray Charles plays the piano."
    coded = tok(text, return_offsets_mapping=True)
    assert tok.decode(coded["input_ids"]) == text
    assert coded["offset_mapping"][0][0] == 0
    assert coded["offset_mapping"][-1][1] == len(text)
    assert tok.bos_token == tok.eos_token == tok.pad_token == "<|endoftext|>"


def test_loading_twice_gives_the_same(loaded: tuple[Any, Any, list[demo.DemoFact]]) -> None:
    model, _, facts = loaded
    again, _, facts_again = demo.load()
    assert facts == facts_again
    for mine, other in zip(model.parameters(), again.parameters(), strict=True):
        assert mine is not other
        assert torch.equal(mine, other)


def test_auto_classes_load_the_folder() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(demo.model_path())
    model = AutoModelForCausalLM.from_pretrained(demo.model_path())
    ids = tok("Ray Charles plays the", return_tensors="pt")["input_ids"]
    assert tok.decode(model(ids).logits[0, -1].argmax()) == " piano"
