"""--form on the command line: edited, saved as a plain checkpoint, applied in another form."""

from __future__ import annotations

import json

import pytest
import torch
from cli_helpers import refusal
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from rome_fast import demo
from rome_fast.cli.app import app

SETTINGS = "layers: [2]\nv_num_grad_steps: 20\ncontext_template_length_params: [[5, 4]]\n"


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert code is None or result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def facts():
    return list({fact.subject: fact for fact in demo.load_facts()}.values())[:3]


@pytest.fixture(scope="module")
def edit(tmp_path_factory, facts):
    """(folder, the words of a command that edits the facts; the form is to follow)."""
    folder = tmp_path_factory.mktemp("forms")
    (folder / "settings.yaml").write_text(SETTINGS)
    lines = [
        json.dumps({"prompt": f.prompt, "subject": f.subject, "target": f.target_new})
        for f in facts
    ]
    (folder / "facts.jsonl").write_text("\n".join(lines))
    words = ("edit", "--model", demo.model_path(), "--hparams", folder / "settings.yaml")
    return folder, (*words, "--requests", folder / "facts.jsonl", "--form")


def assert_says(folder, facts):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tok = AutoTokenizer.from_pretrained(folder)
    for fact in facts:
        ids = torch.tensor([tok(fact.prompt.replace("{}", fact.subject))["input_ids"]])
        said = tok.decode(int(model(input_ids=ids).logits[0, -1].argmax())).strip()
        assert said and fact.target_new.startswith(said)


def test_neurons_are_made_saved_and_applied_elsewhere(edit, facts):
    folder, words = edit
    run(*words, "neuron", "--journal", folder / "journal", "--save", folder / "edited")
    assert_says(folder / "edited", facts)
    again = run(*words, "gate", "--journal", folder / "journal", code=None)
    assert "form is 'neuron', not 'gate'" in refusal(again)
    assert run("log", folder / "journal").output.count("neuron of norm") == 3
    apply = ("apply", folder / "journal", "--model", demo.model_path(), "--form")
    for form in ("weight", "neuron"):
        run(*apply, form, "--save", folder / form)
        assert_says(folder / form, facts)
    refused = run("export", folder / "journal", "--lora", folder / "lora", code=None)
    assert "which no adapter can hold" in refusal(refused)


def test_gates_cannot_be_saved_and_bad_forms_are_named(edit):
    folder, words = edit
    refused = run(*words, "gate", "--save", folder / "gated", code=2)
    assert "no checkpoint can hold" in refused.stderr and not (folder / "gated").exists()
    assert "form must be one of" in refusal(run(*words, "adapter", code=None))
