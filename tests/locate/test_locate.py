"""locate() as its users call it: what a Trace says, seeds, prompts, errors, and a known fact."""

from __future__ import annotations

import pytest
import torch
from helpers import same_bits, state
from one_cell import one_cell

import rome_fast
from rome_fast import demo
from rome_fast.errors import InvalidArgumentError, InvalidRequestError, SubjectNotFoundError
from rome_fast.locate.tracing import TraceSettings

PROMPT, SUBJECT = "The founder is {} of", "Steve Jobs"


def located(model, tok, **options):
    return rome_fast.locate(model, tok, PROMPT, SUBJECT, progress=False, **options)


def test_a_trace_says_what_the_model_says(tiny):
    model, tok = tiny
    trace = located(model, tok, samples=3)
    text = PROMPT.format(SUBJECT)
    ids = tok(text)["input_ids"]
    chances = model(torch.tensor([ids])).logits[0, -1].softmax(-1).detach()
    assert trace.prompt == text
    assert trace.answer == tok.decode([chances.argmax()])
    assert trace.high == pytest.approx(float(chances.max()), rel=1e-5)
    assert len(trace.tokens) == len(ids)
    start, end = trace.subject_range
    assert "".join(trace.tokens[start:end]).replace(" ", "") == "SteveJobs"
    for kind in ("hidden", "mlp", "attn"):
        assert trace.scores[kind].shape == (len(ids), 4)
        assert trace.scores[kind].dtype == torch.float64


def test_bos_is_shown_by_its_name(_pristine):
    model, tok = _pristine["llama"]
    assert located(model, tok, samples=1, kinds=["hidden"]).tokens[0] == "<s>"


def test_scores_are_those_of_one_state_at_a_time_with_noise_of_the_reference(gpt2):
    model, tok = gpt2
    model.double()
    trace = located(model, tok, samples=4, noise=2.0, window=2, seed=5)
    ids, (start, end) = tok(PROMPT.format(SUBJECT))["input_ids"], trace.subject_range
    deviation = model.transformer.wte.weight[ids[start:end]].detach().std()
    assert trace.settings["noise_std"] == pytest.approx(2 * float(deviation), rel=1e-9)
    generator = torch.Generator().manual_seed(5)
    shape = 4, end - start, model.config.n_embd
    added = 2 * deviation * torch.randn(shape, generator=generator, dtype=torch.float64)
    for kind, layers in ("hidden", range(2, 3)), ("mlp", range(1, 3)), ("attn", range(1, 3)):
        arguments = (ids, (start, end), added, kind, end - 1, layers)
        _, expected = one_cell(model, "GPT2", *arguments)
        assert float(trace.scores[kind][end - 1, 2]) == pytest.approx(expected, rel=1e-6)


def test_restoring_where_the_answer_is_read_brings_all_of_it_back_and_elsewhere_nothing(tiny):
    trace = located(*tiny, kinds=["hidden"])
    scores, (start, _) = trace.scores["hidden"], trace.subject_range
    assert float(scores[-1, -1]) == pytest.approx(trace.high, rel=1e-5)
    # Noise on the subject does not reach what comes before it.
    before = scores[:start]
    torch.testing.assert_close(before, torch.full_like(before, trace.low), rtol=1e-5, atol=0)
    assert trace.peak("hidden")[0] >= start


def test_seeds(gpt2):
    before = torch.random.get_rng_state()
    first, again, other = (located(*gpt2, kinds=["mlp"], seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.scores["mlp"], again.scores["mlp"])
    assert not torch.equal(first.scores["mlp"], other.scores["mlp"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_model_is_left_as_it_was(gpt2):
    model, tok = gpt2
    model.train()
    before = state(model)
    located(model, tok, samples=2)
    assert same_bits(model, before)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or "forward" in vars(m) for m in model.modules())


def test_a_prompt_may_hold_the_subject(gpt2):
    named = rome_fast.locate(*gpt2, "The founder is Steve Jobs of", SUBJECT, kinds="mlp")
    assert torch.equal(named.scores["mlp"], located(*gpt2, kinds=["mlp"]).scores["mlp"])


@pytest.mark.parametrize(
    ("n_layers", "window", "expected"),
    [
        (48, None, [range(0, 5), range(15, 25), range(42, 48)]),  # of layers 0, 20 and 47
        (23, None, [range(0, 3), range(9, 14), range(20, 23)]),
        (6, None, [range(0, 1), range(3, 4), range(5, 6)]),  # of layers 0, 3 and 5
        (6, 3, [range(0, 2), range(2, 5), range(4, 6)]),
        (6, 4, [range(0, 2), range(1, 5), range(3, 6)]),
    ],
)
def test_windows(n_layers, window, expected):
    settings = TraceSettings.of(n_layers, 3.0, 10, window, 0)
    layers = 0, min(20, n_layers // 2), n_layers - 1
    assert [settings.layers_around(layer, n_layers) for layer in layers] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["mlps"]}, "kinds must be some of"),
        ({"kinds": []}, "kinds must be some of"),
        ({"noise": 0}, "noise must be a finite number > 0, got 0"),
        ({"noise": float("nan")}, "noise must be"),
        ({"samples": 0}, "samples must be a whole number of 1 or more, got 0"),
        ({"window": 2.5}, "window must be a whole number"),
        ({"seed": -1}, "seed must be a whole number of 0 or more, got -1"),
    ],
)
def test_bad_arguments_are_named(gpt2, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        located(*gpt2, **options)


def test_bad_prompts_are_named(gpt2):
    with pytest.raises(SubjectNotFoundError, match="Bill Gates"):
        rome_fast.locate(*gpt2, "The founder is Steve Jobs", "Bill Gates")
    with pytest.raises(InvalidRequestError, match="tokens, but the model takes 128"):
        rome_fast.locate(*gpt2, "tea " * 200 + "{}", SUBJECT)


def test_facts_of_the_embedded_model_pass_through_its_layer_2():
    model, tok, _ = demo.load()
    trace = rome_fast.locate(model, tok, "{} plays the", "Ray Charles", window=1, progress=False)
    last = trace.subject_range[1] - 1
    assert trace.answer == " piano"
    assert trace.low < 0.25 * trace.high
    hidden, mlp = (trace.scores[kind][last] - trace.low for kind in ("hidden", "mlp"))
    # All of it is there after layer 2 and gone from there at the end; above the lowest block only
    # the MLP of layer 2 brings it back.
    assert hidden[2] > 0.9 * (trace.high - trace.low) > 0.1 > hidden[5]
    assert int(mlp[1:].argmax()) + 1 == 2
    assert mlp[2] > 4 * mlp[[1, 3, 4, 5]].max()
