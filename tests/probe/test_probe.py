"""The probe: a trial edit a layer, told as it is, and no bit of the model changed."""

from __future__ import annotations

import pytest
from families import lively_family
from helpers import same_bits, state
from mixtures import MIXTURES
from tiny import metaspace_tokenizer
from typer.testing import CliRunner

import rome_fast
from rome_fast.cli.app import app
from rome_fast.errors import (
    HparamsError,
    InvalidRequestError,
    TokenizerMismatchError,
    UnsupportedModelError,
)
from rome_fast.model.spec import ModelSpec

REQUEST = {"prompt": "The founder is {}", "subject": "Steve Jobs", "target_new": "capital"}


def probe(model, tok, request=REQUEST, **options):
    return rome_fast.probe(model, tok, request, progress=False, **options)


def test_each_layer_is_tried_and_every_bit_kept(tiny):
    model, tok = tiny
    before = state(model)
    found = probe(model, tok)
    assert same_bits(model, before)
    assert [tried.layer for tried in found.layers] == [0, 1, 2, 3]
    assert any(tried.rank_after == 1 for tried in found.layers)
    for tried in found.layers:
        assert not tried.refusal and 0 <= tried.prob_before < tried.prob_after <= 1
        runs_on = any("goes on inside the word" in note for note in tried.notes)
        assert tried.success == (tried.rank_after == 1 and not runs_on)
        assert (tried.layer in found.editable) == tried.success
        assert tried.memory > 12 * found.anatomy.layers[tried.layer].d_key ** 2
    assert str(found).startswith(str(found.anatomy))
    assert "'The founder is Steve Jobs' -> 'capital'" in str(found)


def test_what_it_says_of_a_layer_is_what_an_edit_of_it_does(tiny):
    model, tok = tiny
    [tried] = probe(model, tok, layers=[1]).layers
    hparams = rome_fast.hparams.defaults_for(ModelSpec.of(model), 1)[0]
    with rome_fast.trial(model, tok, REQUEST, hparams, second_moment="identity") as result:
        assert tried.prob_after == pytest.approx(result.prob_after, rel=1e-4)
        assert tried.steps == len(result.losses)
        assert tried.loss == pytest.approx(result.losses[-1], rel=1e-4)


def test_layers_that_cannot_be_edited_are_said_and_the_others_tried():
    tok = metaspace_tokenizer()
    model = MIXTURES["Qwen2-MoE"].build(len(tok))
    found = probe(model, tok)
    assert [bool(tried.refusal) for tried in found.layers] == [False, False, True]
    assert "is a mixture of experts" in found.layers[2].refusal
    row = next(line for line in str(found).splitlines() if line.strip().startswith("2  "))
    assert "shared_expert=True" in row


def test_a_model_without_an_editable_layer():
    tok = metaspace_tokenizer()
    found = probe(MIXTURES["Mixtral"].build(len(tok)), tok)
    assert found.editable == () and all(tried.refusal for tried in found.layers)
    assert str(found).count("Dense layers: none.") >= 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": [4]}, HparamsError, "layer 4, but .* layers 0 to 3"),
        ({"request": {"prompt": "{} is"}}, InvalidRequestError, "lacks subject, target_new"),
        ({"model": None}, UnsupportedModelError, "must be a Hugging Face decoder"),
        ({"tok": None}, TokenizerMismatchError, "must be a tokenizer"),
    ],
    ids=["layer", "request", "model", "tok"],
)
def test_bad_input_is_named(tiny, change, error, message):
    model, tok = tiny
    given = {"model": model, "tok": tok, "request": REQUEST, **change}
    with pytest.raises(error, match=message):
        probe(**given)


def test_command(tmp_path):
    tok = metaspace_tokenizer()
    lively_family("Llama", len(tok)).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    words = ["--prompt", "The founder is {}", "--subject", "Steve Jobs", "--target", "capital"]
    command = ["probe", "--model", str(tmp_path), *words]
    run = CliRunner().invoke(app, [*command, "--layers", "0,1"])
    assert run.exit_code in (0, 1)
    assert "layers 0-2    mlp.down_proj, Linear 48 -> 32 (out_in)" in run.stdout
    took = rome_fast.probe(*_loaded(tmp_path), REQUEST, layers=[0, 1], progress=False).editable
    assert (run.exit_code == 0) == bool(took)
    half = CliRunner().invoke(app, command[:-2])
    assert half.exit_code == 2 and "--prompt, --subject and --target, or none" in half.stderr


def _loaded(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
