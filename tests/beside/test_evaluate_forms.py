"""evaluate(form=): each form judged alone and in sequence, and what does not fire is said."""

from __future__ import annotations

import pytest
from helpers import CONTEXTS, same_bits, state

from rome_fast import evaluate
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.types import EditRequest

FORMS = pytest.mark.parametrize("form", ["neuron", "gate"])


@pytest.fixture
def records(requests):
    neighbours = (Question("He is a man. They met", "capital"),)
    return [
        EditRecord(
            i,
            EditRequest(r["prompt"], r["subject"], r["target_new"]),
            target_true="the",
            paraphrases=(f"He is a man. {r['prompt'].format(r['subject'])}", "It is someone else"),
            neighborhood=neighbours,
        )
        for i, r in enumerate(requests)
    ]


@FORMS
@pytest.mark.parametrize("mode", ["single", "sequential"])
def test_every_edit_is_judged_and_none_is_kept(gpt2, hparams, records, mode, form, tmp_path):
    model, tok = gpt2
    before = state(model)
    options = {"hparams": hparams, "context_templates": CONTEXTS, "generate_tokens": 0}
    options |= {"form": form, "progress": False, "held_texts": ["The weather was fine. He is"]}
    journal = tmp_path / "journal.jsonl"
    made = evaluate(model, tok, records, mode, **options, resume=journal)
    assert same_bits(model, before)
    assert made.metrics["after"]["ES"].mean == 1.0
    assert made.metrics["after"]["EM"].mean > made.metrics["before"]["EM"].mean
    assert made.drift["after"]["kl"] < 1e-2
    said = [text for case in made.cases for text in case.warnings if "does not fire" in text]
    assert len(said) == 4 and "1 of 2 paraphrases, like 'It is someone else'" in said[0]
    # Cut off after two cases, it goes on to the same numbers.
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:3]))
    again = evaluate(model, tok, records, mode, **options, resume=journal)
    assert again.metrics["after"]["ES"] == made.metrics["after"]["ES"]
    assert same_bits(model, before)
