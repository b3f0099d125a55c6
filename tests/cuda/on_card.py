"""What only a GPU can show: streams, captured graphs, devices, and edits of whole models.

    python -m pytest tests/cuda/on_card.py

Not collected unless it is named (benchmarks/gpu does). ROME_FAST_TEST_DEVICE=cpu runs what asks
for no stream on the CPU, which tests the tests.
"""

from __future__ import annotations

import copy
import gc
import os

import pytest
import torch
from cuda_calls import CALLS, KERNELS_OF_CALLS
from helpers import CONTEXTS, REQUEST, same_bits, state
from tiny import tiny_gpt2, tiny_llama, tiny_second_moment

import rome_fast
from rome_fast import ops
from rome_fast.model.spec import ModelSpec

WITHOUT_GRAPH = "without a CUDA graph"
MODELS = {"gpt2": tiny_gpt2, "llama": tiny_llama}


@pytest.fixture(scope="session")
def card():
    """The device; where there is none, the tests say so."""
    name = os.environ.get("ROME_FAST_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return torch.device(name)


@pytest.fixture
def cuda(card):
    if card.type != "cuda":
        pytest.skip("streams and graphs are a GPU's")
    return card


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


def assert_close(found, expected, tolerance):
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        one, other = one.detach().cpu().double(), other.detach().cpu().double()
        difference = float((one - other).norm()), float(other.norm())
        assert difference[0] <= tolerance * difference[1], f"output {number}: {difference}"


def assert_same(found, expected):
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(one, other), f"output {number}"


def test_the_kernels_are_there(card):
    assert ops.resolve_backend("native", card.type) == "native"


@pytest.mark.parametrize(("name", "kernel"), KERNELS_OF_CALLS)
def test_every_op_once(card, name, kernel, monkeypatch):
    """With each of its kernels; also what runs under compute-sanitizer."""
    monkeypatch.setenv("ROME_FAST_CUDA_KERNEL", kernel)
    call = CALLS[name]
    found = call.run(call.on(card))
    assert_close(found, call.run(call.on("cpu"), backend="torch"), call.tolerance)


def test_the_same_bits_every_time(card, call):
    assert_same(call.run(call.on(card)), call.run(call.on(card)))


def test_ops_run_on_the_current_stream(cuda, call):
    """Behind what the stream is still busy with: on another one they would see NaN or zeros."""
    expected, given = call.run(call.on(cuda)), call.on(cuda)
    late = {k: torch.zeros_like(v) for k, v in given.items() if isinstance(v, torch.Tensor)}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        for name, tensor in late.items():
            tensor.copy_(given[name])
        found = call.run({**given, **late})
    stream.synchronize()
    assert_same(found, expected)


def test_ops_can_be_captured(cuda, call):
    """Replays do what calls do, one after another, without the host."""
    given = call.on(cuda)
    expected, own = [x.clone() for x in call.run(call.on(cuda))], call.on(cuda)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call.run(call.on(cuda))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call.run(own)
    for _ in range(2):
        for name, tensor in own.items():
            if isinstance(tensor, torch.Tensor):
                tensor.copy_(given[name])
        graph.replay()
        assert_same(found, expected)


def test_ops_run_where_their_tensors_are(cuda, call):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU here, not two")
    expected = call.run(call.on("cuda:0"))
    with torch.cuda.device(0):
        found = call.run(call.on("cuda:1"))
    assert {x.device.index for x in found} == {1}
    assert_same([x.to("cuda:0") for x in found], expected)


def made(name, card, dtype=torch.float32):
    model, tok = MODELS[name]()
    return model.to(card, dtype), tok


def options(model, **changes):
    """Few steps: Adam divides by small numbers, so that rounding grows with them."""
    hparams = rome_fast.RomeHparams(
        layers=[1], v_num_grad_steps=5, v_lr=0.1, v_weight_decay=1e-3, clamp_norm_factor=12
    )
    d_key = ModelSpec.of(model).down_projection(1).d_key
    c = tiny_second_moment(d_key).to(next(model.parameters()).device)
    moment = rome_fast.SecondMoment.from_moment(c, 10**6)
    given = {"second_moment": moment, "context_templates": CONTEXTS}
    return {"hparams": hparams.replace(**changes), **given}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 2e-3)])
@pytest.mark.parametrize("name", MODELS)
def test_an_edit_is_that_of_the_cpu(card, name, dtype, tolerance):
    results = []
    for device in (torch.device("cpu"), card):
        model, tok = made(name, device, dtype)
        results.append(rome_fast.edit(model, tok, REQUEST, **options(model)))
    expected, found = results
    assert found.losses == pytest.approx(expected.losses, rel=tolerance)
    assert_close([found.update.dense()], [expected.update.dense()], 10 * tolerance)
    assert found.argmax_after == expected.argmax_after


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_captured_steps_are_the_usual_ones(card, name, dtype):
    """Twice, so that a graph is used again; and once with another number of tokens."""
    model, tok = made(name, card, dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    requests = [REQUEST, REQUEST, {**REQUEST, "subject": "Ada Lovelace"}]
    for request in requests:
        losses = {}
        for backend in ("auto", "torch"):
            with rome_fast.trial(model, tok, request, backend=backend, **options(model)) as result:
                losses[backend] = result.losses
                assert not any(WITHOUT_GRAPH in text for text in result.warnings), result.warnings
        assert losses["auto"] == pytest.approx(losses["torch"], rel=tolerance)


def test_a_captured_search_stops_where_the_usual_one_does(card):
    model, tok = made("llama", card)
    given = options(model, v_num_grad_steps=25, v_lr=0.3, v_stop_loss=1.0)
    steps = []
    for backend in ("auto", "torch"):
        with rome_fast.trial(model, tok, REQUEST, backend=backend, **given) as result:
            steps.append(len(result.losses))
    assert steps[0] == steps[1] < 25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_undo_restores_every_bit(card, name, dtype):
    model, tok = made(name, card, dtype)
    requests = [{**REQUEST, "subject": s} for s in ("Steve Jobs", "Ada Lovelace", "Marie Curie")]
    states, results = [state(model)], []
    for request in requests:
        results.append(rome_fast.edit(model, tok, request, **options(model)))
        states.append(state(model))
    assert not same_bits(model, states[0])
    for result, before in zip(reversed(results), reversed(states[:-1]), strict=True):
        result.revert()
        assert same_bits(model, before)


def test_a_session_replays_to_the_same_bits(card):
    model, tok = made("gpt2", card, torch.bfloat16)
    other = copy.deepcopy(model)
    requests = [{**REQUEST, "subject": s} for s in ("Steve Jobs", "Ada Lovelace", "Marie Curie")]
    own = {"health": rome_fast.HealthCheck(every=0)}
    with rome_fast.Session(model, tok, **options(model), **own, form="weight") as session:
        session.edit_many(requests, progress=False)
        session.undo(2)
    with rome_fast.Session(other, tok, **options(other), **own, form="weight") as session:
        session.edit(requests[0])
    assert same_bits(model, state(other))


def test_windows_of_independent_edits(card):
    model, tok = made("llama", card)
    requests = [{**REQUEST, "subject": s} for s in ("Steve Jobs", "Ada Lovelace", "Marie Curie")]
    before = state(model)
    given = {**options(model), "progress": False}
    with rome_fast.trial(model, tok, requests, order="independent", **given) as together:
        assert {result.window for result in together} == {3}
    assert same_bits(model, before)
    for request, result in zip(requests, together, strict=True):
        with rome_fast.trial(model, tok, request, **options(model)) as alone:
            assert result.losses == pytest.approx(alone.losses, rel=2e-3)


def losses_of(model, tok):
    with rome_fast.trial(model, tok, REQUEST, **options(model)) as result:
        assert not any(WITHOUT_GRAPH in text for text in result.warnings), result.warnings
        return result.losses


def test_graphs_of_one_model_outlive_another(cuda):
    """What a graph works in is its own: it is not gone with the model that was captured first."""
    first, second = made("gpt2", cuda), made("llama", cuda)
    losses_of(*first)
    expected = losses_of(*second)
    del first
    gc.collect()
    torch.cuda.empty_cache()
    assert losses_of(*second) == expected


def test_a_model_on_the_second_device(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU here, not two")
    expected = losses_of(*made("llama", torch.device("cuda:0")))
    with torch.cuda.device(0):
        assert losses_of(*made("llama", torch.device("cuda:1"))) == pytest.approx(expected)


def test_a_failed_capture_leaves_nothing_behind(cuda):
    """The steps run as usual; the stream is the user's, and random numbers can be drawn."""
    model, tok = made("llama", cuda)
    handle = model.model.layers[2].register_forward_hook(
        lambda *args: args[2].sum().item() and None
    )
    stream = torch.cuda.current_stream()
    with rome_fast.trial(model, tok, REQUEST, **options(model)) as result:
        assert any(WITHOUT_GRAPH in text for text in result.warnings)
    handle.remove()
    assert torch.cuda.current_stream() == stream
    assert torch.rand(3, device=cuda).isfinite().all()
    assert losses_of(model, tok) == pytest.approx(result.losses, rel=1e-3)
