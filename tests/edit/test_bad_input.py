"""Bad input: a typed error that names argument and value, and weights that keep their bits."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
import transformers as hf
from helpers import REQUEST, same_bits, state
from tiny import tiny_llama

import rome_fast
from rome_fast import errors
from rome_fast.model.spec import ModelSpec
from rome_fast.update.solve import Constraint, apply_update_
from rome_fast.update.undo import WeightHistory


@contextmanager
def refuses(model, error, match):
    """The block raises ``error``, and no bit of the model changes."""
    before = state(model)
    with pytest.raises(error, match=match):
        yield
    assert same_bits(model, before)


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
    "half a character": (
        wrong(prompt="{} \ud800 is"),
        errors.InvalidRequestError,
        "prompt holds half of a character",
    ),
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
    "not a dict": ("Steve Jobs", errors.InvalidRequestError, "dict, got str: 'Steve Jobs'"),
    "a list": ([REQUEST], errors.InvalidRequestError, r"is a list: edit_many\(\) takes several"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_request(gpt2, settings, case):
    request, error, message = BAD_REQUESTS[case]
    model, tok = gpt2
    with refuses(model, error, message):
        rome_fast.edit(model, tok, request, **settings)


def test_bad_second_request_undoes_the_first(gpt2, settings):
    model, tok = gpt2
    special = wrong(target_new="<|endoftext|>")
    with refuses(model, errors.InvalidRequestError, "tokenises to nothing"):
        rome_fast.edit_many(model, tok, [REQUEST, special], **settings)


@pytest.mark.parametrize(
    ("requests", "changes", "error", "message"),
    [
        ([], {}, errors.InvalidRequestError, "requests is empty"),
        (REQUEST, {}, errors.InvalidRequestError, r"got dict: edit\(\) takes one"),
        ([REQUEST], {"order": "fast"}, errors.InvalidArgumentError, "one of .*, got 'fast'"),
        ([REQUEST], {"window": 0}, errors.InvalidArgumentError, "1 or more, got 0"),
    ],
)
def test_bad_arguments_of_edit_many(gpt2, settings, requests, changes, error, message):
    model, tok = gpt2
    with refuses(model, error, message):
        rome_fast.edit_many(model, tok, requests, **settings, **changes)


def test_errors_of_a_list_name_the_item(gpt2, settings):
    model, tok = gpt2
    with refuses(model, errors.InvalidRequestError, r"requests\[1\]: request lacks subject"):
        rome_fast.edit_many(model, tok, [REQUEST, {"prompt": "x", "target": "y"}], **settings)


def test_prompt_longer_than_the_model_takes(gpt2, settings):
    model, tok = gpt2
    long = wrong(prompt="The weather was fine. " * 40 + "The founder is {}")
    with refuses(model, errors.InvalidRequestError, "the model takes 128: shorten"):
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
        ({"compute_dtype": "x"}, r"hparams.compute_dtype must be one of .*'bfloat16'.* got 'x'"),
        ({"layers": [True]}, r"hparams.layers"),
        ({"context_template_length_params": [["a", 1]]}, r"list of \[length >= 2, count >= 1\]"),
        ({"context_template_length_params": [[5, 0]]}, r"list of \[length >= 2, count >= 1\]"),
        ({"clamp": 4}, r"unknown key 'clamp'; known: .*clamp_norm_factor"),
    ],
)
def test_bad_hparams(gpt2, settings, changes, message):
    model, tok = gpt2
    with refuses(model, errors.HparamsError, message):
        rome_fast.edit(
            model, tok, REQUEST, **{**settings, "hparams": settings["hparams"].replace(**changes)}
        )


def test_nan_weight(gpt2, settings):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[2, 3] = float("nan")
    with refuses(model, errors.NonFiniteError, r"h\.1\.mlp\.c_proj\.weight already holds NaN"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_nan_activation_below(gpt2, settings):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias[0] = float("inf")
    with refuses(model, errors.NonFiniteError, r"activations at transformer\.h\.1\.mlp"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_non_finite_loss_names_step_and_layer(gpt2, settings):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.h[3].mlp.c_fc.bias[0] = float("inf")
    with refuses(model, errors.NonFiniteError, r"loss became nan at step 1 of v\* in layer 1"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_unsupported_models(gpt2, settings):
    model, tok = gpt2
    with refuses(model, errors.UnsupportedModelError, "got str"):
        rome_fast.edit("gpt2", tok, REQUEST, **settings)
    with refuses(model, errors.UnsupportedModelError, "got Linear"):
        rome_fast.edit(torch.nn.Linear(2, 2), tok, REQUEST, **settings)
    model.transformer.h[1].mlp.c_proj = torch.nn.Identity()
    with refuses(model, errors.UnsupportedModelError, "layer 1 has no dense down-projection"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_non_finite_model_is_refused_with_default_arguments(gpt2, hparams):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with refuses(model, errors.NonFiniteError, "logits are NaN or infinite while sampling"):
        rome_fast.edit(model, tok, REQUEST, hparams)


def test_overflow_of_a_half_precision_weight_is_an_error(gpt2):
    model, _ = gpt2
    projection = ModelSpec.of(model.half()).down_projection(1)
    with torch.no_grad():
        projection.weight.fill_(6.5e4)
    key, residual = torch.ones(256), torch.full((64,), 1e6)
    with pytest.raises(errors.NonFiniteError, match=r"overflows torch\.float16"):
        apply_update_(
            WeightHistory(projection, "auto"), Constraint(key[None], key[None], residual), None
        )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: hf.GPT2Model(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4)),
            "language-model head",
        ),
        (
            lambda: hf.BertForMaskedLM(
                hf.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
            ),
            "language-model head",
        ),
        (
            lambda: hf.Qwen2MoeForCausalLM(
                hf.Qwen2MoeConfig(
                    vocab_size=64,
                    hidden_size=32,
                    intermediate_size=64,
                    moe_intermediate_size=48,
                    shared_expert_intermediate_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    num_experts=4,
                )
            ),
            "mixture of experts",
        ),
    ],
)
def test_models_without_a_fact_to_edit(build, message):
    with pytest.raises(errors.UnsupportedModelError, match=message):
        ModelSpec.of(build()).down_projection(1)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("request", None, errors.InvalidRequestError, "dict, got NoneType"),
        ("hparams", {"layers": [1]}, errors.HparamsError, "must be a RomeHparams, got dict"),
        ("tok", None, errors.TokenizerMismatchError, "tok must be a tokenizer, got NoneType"),
    ],
)
def test_arguments_of_the_wrong_kind(gpt2, settings, name, value, error, message):
    model, tok = gpt2
    arguments = {"request": REQUEST, "tok": tok, **settings, name: value}
    with refuses(model, error, message):
        rome_fast.edit(model, **arguments)


def test_mixture_of_experts_is_refused(gpt2, settings):
    model, tok = gpt2
    mlp = model.transformer.h[1].mlp
    # More experts than blocks: the longest list of the model is not that of its blocks.
    mlp.experts = torch.nn.ModuleList(torch.nn.Linear(256, 64) for _ in range(8))
    with refuses(model, errors.UnsupportedModelError, "mixture of experts"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_offloaded_weight_is_refused(gpt2, settings):
    model, tok = gpt2
    model.transformer.h[1].mlp.to("meta")
    with pytest.raises(errors.UnsupportedModelError, match="offloaded"):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_tokenizer_of_another_model(gpt2, settings):
    model, tok = gpt2
    model.resize_token_embeddings(len(tok) * 3)
    with refuses(model, errors.TokenizerMismatchError, r"tok has \d+ tokens but GPT2LMHead"):
        rome_fast.edit(model, tok, REQUEST, **settings)
    model.resize_token_embeddings(len(tok) - 1)
    with refuses(model, errors.TokenizerMismatchError, "embedding rows"):
        rome_fast.edit(model, tok, REQUEST, **settings)


@pytest.mark.parametrize(
    ("templates", "message"),
    [("{}", "non-empty list"), ([], "non-empty list"), (["no slot"], "got 'no slot'"),
     (["{} {}"], "exactly one")],
)  # fmt: skip
def test_bad_context_templates(gpt2, settings, templates, message):
    model, tok = gpt2
    settings["context_templates"] = templates
    with refuses(model, errors.InvalidArgumentError, message):
        rome_fast.edit(model, tok, REQUEST, **settings)


def test_bad_second_moments(gpt2, settings, tmp_path):
    model, tok = gpt2

    def attempt(second_moment):
        rome_fast.edit(model, tok, REQUEST, **{**settings, "second_moment": second_moment})

    with refuses(model, errors.InvalidArgumentError, "'identity' or None, got int"):
        attempt(3)
    with refuses(model, errors.InvalidArgumentError, r"pass one of its values \(1\)"):
        attempt({1: "moment"})
    with refuses(model, errors.InvalidArgumentError, "from_moment"):
        attempt(torch.eye(256))
    with refuses(model, errors.SecondMomentError, r"d_key differs: 8 there, 256 here"):
        attempt(rome_fast.SecondMoment.from_moment(torch.eye(8), 100))
    with refuses(model, errors.SecondMomentError, "there is no file"):
        attempt(tmp_path / "none.safetensors")
    with refuses(model, errors.SecondMomentError, "hold no token"):
        attempt([])
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with refuses(model, errors.SecondMomentError, "not a second-moment file"):
        attempt(tmp_path / "junk.safetensors")


def test_rejected_update_leaves_the_weights(gpt2, settings, monkeypatch):
    """The original variant divides by what the prompt key says of the mean key's direction."""
    model, tok = gpt2
    monkeypatch.setattr("rome_fast.update.solve.MIN_DENOMINATOR", 1e9)
    with refuses(model, errors.EditRejectedError, r"c_proj was refused: denominator"):
        rome_fast.edit(model, tok, REQUEST, variant="original", **settings)


def test_unknown_backend(gpt2, settings):
    model, tok = gpt2
    with refuses(model, errors.InvalidArgumentError, r"backend .* got 'cuda'"):
        rome_fast.edit(model, tok, REQUEST, backend="cuda", **settings)


def test_llama_tokenizer_on_gpt2_model(gpt2, settings):
    model, _ = gpt2
    _, tok = tiny_llama()
    model.resize_token_embeddings(len(tok) - 20)
    with refuses(model, errors.TokenizerMismatchError, "belongs to the model"):
        rome_fast.edit(model, tok, REQUEST, **settings)
