"""Bad input: a typed error that names argument and value, and weights that keep their bits."""

from __future__ import annotations

import pytest
import torch
from conftest import REQUEST, same_bits, state
from tiny import tiny_llama

import rome_fast
from rome_fast import errors


def wrong(**changes):
    return {**REQUEST, **changes}


BAD_REQUESTS = {
    "subject absent": (
        wrong(prompt="the founder is steve jobs"),
        errors.SubjectNotFoundError,
        r"subject 'Steve Jobs' .*nearest match: 'steve jobs' at 15; the case differs",
    ),
    "subject misspelt": (
        wrong(prompt="The founder is Steven Jobs"),
        errors.SubjectNotFoundError,
        r"nearest match: 'Steve' at 15",
    ),
    "empty target": (wrong(target_new=""), errors.InvalidRequestError, "target is empty: ''"),
    "blank target": (wrong(target_new="  "), errors.InvalidRequestError, "target is empty"),
    "special target": (
        wrong(target_new="<|endoftext|>"),
        errors.InvalidRequestError,
        r"target '<\|endoftext\|>' tokenises to nothing",
    ),
    "two slots": (
        wrong(prompt="{} and {} met"),
        errors.InvalidRequestError,
        r"2 slots .*'\{\} and \{\} met'",
    ),
    "no subject": ({"prompt": "x", "target_new": "y"}, errors.InvalidRequestError, "lacks subject"),
    "subject a number": (wrong(subject=7), errors.InvalidRequestError, "subject must be a string"),
    "not a dict": ("Steve Jobs", errors.InvalidRequestError, "dict, got str: 'S'"),
    "empty list": ([], errors.InvalidRequestError, "request is an empty list"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_request(gpt2, settings, case):
    request, error, message = BAD_REQUESTS[case]
    model, tok = gpt2
    before = state(model)
    with pytest.raises(error, match=message):
        rome_fast.edit(model, tok, request, **settings)
    assert same_bits(model, before)


def test_bad_second_request_undoes_the_first(gpt2, settings):
    model, tok = gpt2
    before = state(model)
    special = wrong(target_new="<|endoftext|>")
    with pytest.raises(errors.InvalidRequestError):
        rome_fast.edit(model, tok, [REQUEST, special], **settings)
    assert same_bits(model, before)


def test_prompt_longer_than_the_model_takes(gpt2, settings):
    model, tok = gpt2
    long = wrong(prompt="The weather was fine. " * 40 + "The founder is {}")
    with pytest.raises(errors.InvalidRequestError, match="the model takes 128: shorten"):
        rome_fast.edit(model, tok, long, **settings)


def test_literal_braces_are_text(gpt2, settings):
    model, tok = gpt2
    request = wrong(prompt='{"name": "Steve Jobs", "city": {"is":', target_new="{x}")
    result = rome_fast.edit(model, tok, request, **settings)
    assert result.request.text == '{"name": "Steve Jobs", "city": {"is":'
    assert "".join(result.target_tokens).strip() == "{x}"
    assert result.subject_token == tok.decode(tok(" Jobs").input_ids[-1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [4]}, r"layer 4, but GPT2LMHeadModel has layers 0 to 3"),
        ({"layers": [-1]}, r"hparams.layers .* got \(-1,\)"),
        ({"layers": [1, 2]}, r"hparams.layers must be a list of one"),
        ({"layers": 1}, r"hparams.layers must be a list, got 1"),
        ({"v_lr": 0}, r"hparams.v_lr must be a finite number > 0, got 0"),
        ({"v_lr": "fast"}, r"hparams.v_lr .* got 'fast'"),
        ({"v_num_grad_steps": 0}, r"hparams.v_num_grad_steps must be an integer >= 1, got 0"),
        ({"v_num_grad_steps": 2.5}, r"hparams.v_num_grad_steps"),
        ({"kl_factor": float("nan")}, r"hparams.kl_factor .* got nan"),
        ({"fact_token": "middle"}, r"hparams.fact_token must be one of .* got 'middle'"),
        ({"variant": "best"}, r"hparams.variant must be one of .* got 'best'"),
        ({"clamp": 4}, r"unknown key 'clamp'; known: .*clamp_norm_factor"),
    ],
)
def test_bad_hparams(gpt2, settings, changes, message):
    model, tok = gpt2
    before = state(model)
    with pytest.raises(errors.HparamsError, match=message):
        rome_fast.edit(
            model, tok, REQUEST, **{**settings, "hparams": settings["hparams"].replace(**changes)}
        )
    assert same_bits(model, before)


def test_nan_weight(gpt2, settings):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[2, 3] = float("nan")
    with pytest.raises(errors.NonFiniteError, match=r"h\.1\.mlp\.c_proj\.weight already holds NaN"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_nan_activation_below(gpt2, settings):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias[0] = float("inf")
    with pytest.raises(errors.NonFiniteError, match=r"activations at transformer\.h\.1\.mlp"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_non_finite_loss_names_step_and_layer(gpt2, settings):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.h[3].mlp.c_fc.bias[0] = float("inf")
    before = state(model)
    with pytest.raises(errors.NonFiniteError, match=r"loss became nan at step 0 of v\* in layer 1"):
        rome_fast.edit(model, tok, REQUEST, **settings)
    assert same_bits(model, before)


def test_unsupported_models(gpt2, settings):
    model, tok = gpt2
    with pytest.raises(errors.UnsupportedModelError, match="got str"):
        rome_fast.edit("gpt2", tok, REQUEST, **settings)
    with pytest.raises(errors.UnsupportedModelError, match="got Linear"):
        rome_fast.edit(torch.nn.Linear(2, 2), tok, REQUEST, **settings)
    model.transformer.h[1].mlp.c_proj = torch.nn.Identity()
    with pytest.raises(errors.UnsupportedModelError, match="layer 1 has no dense down-projection"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_mixture_of_experts_is_refused(gpt2, settings):
    model, tok = gpt2
    mlp = model.transformer.h[1].mlp
    mlp.experts = torch.nn.ModuleList([torch.nn.Linear(256, 64), torch.nn.Linear(256, 64)])
    with pytest.raises(errors.UnsupportedModelError, match="mixture of experts"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_offloaded_weight_is_refused(gpt2, settings):
    model, tok = gpt2
    model.transformer.h[1].mlp.to("meta")
    with pytest.raises(errors.UnsupportedModelError, match="offloaded"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_tokenizer_of_another_model(gpt2, settings):
    model, tok = gpt2
    model.resize_token_embeddings(len(tok) * 3)
    with pytest.raises(errors.TokenizerMismatchError, match=r"tok has \d+ tokens but GPT2LMHead"):
        rome_fast.edit(model, tok, REQUEST, **settings)
    model.resize_token_embeddings(len(tok) - 1)
    with pytest.raises(errors.TokenizerMismatchError, match="embedding rows"):
        rome_fast.edit(model, tok, REQUEST, **settings)


@pytest.mark.parametrize(
    ("templates", "message"),
    [("{}", "non-empty list"), ([], "non-empty list"), (["no slot"], "got 'no slot'"),
     (["{} {}"], "exactly one")],
)  # fmt: skip
def test_bad_context_templates(gpt2, settings, templates, message):
    model, tok = gpt2
    settings["context_templates"] = templates
    with pytest.raises(errors.InvalidArgumentError, match=message):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_bad_second_moments(gpt2, settings, tmp_path):
    model, tok = gpt2

    def attempt(second_moment):
        rome_fast.edit(model, tok, REQUEST, **{**settings, "second_moment": second_moment})

    with pytest.raises(errors.InvalidArgumentError, match="'identity' or None, got int"):
        attempt(3)
    with pytest.raises(errors.SecondMomentError, match=r"d_key 8, but .* has d_key 256"):
        attempt(rome_fast.SecondMoment.from_moment(torch.eye(8), 100))
    with pytest.raises(errors.SecondMomentError, match="there is no file"):
        attempt(tmp_path / "none.safetensors")
    with pytest.raises(errors.SecondMomentError, match="holds no token"):
        attempt([])
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(errors.SecondMomentError, match="not a second-moment file"):
        attempt(tmp_path / "junk.safetensors")


def test_rejected_update_leaves_the_weights(gpt2, settings, monkeypatch):
    """The original variant divides by what the prompt key says of the mean key's direction."""
    model, tok = gpt2
    before = state(model)
    monkeypatch.setattr("rome_fast.update.MIN_DENOMINATOR", 1e9)
    with pytest.raises(errors.EditRejectedError, match=r"c_proj was refused: denominator"):
        rome_fast.edit(model, tok, REQUEST, variant="original", **settings)
    assert same_bits(model, before)


def test_unknown_backend(gpt2, settings):
    model, tok = gpt2
    with pytest.raises(errors.InvalidArgumentError, match=r"backend .* got 'cuda'"):
        rome_fast.edit(model, tok, REQUEST, backend="cuda", **settings)


def test_llama_tokenizer_on_gpt2_model(gpt2, settings):
    model, _ = gpt2
    _, tok = tiny_llama()
    model.resize_token_embeddings(len(tok) - 20)
    with pytest.raises(errors.TokenizerMismatchError):
        rome_fast.edit(model, tok, REQUEST, **settings)
