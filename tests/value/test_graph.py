"""The step as a captured graph: replays of it find what the usual steps do, and what ends it.

A CUDA graph needs a GPU. Here its place is taken by a recording of the step's operations, which
runs them again on the same tensors without any of Python (see ``recorded``).
"""

from __future__ import annotations

import gc

import pytest
import torch
import transformers
from graph_checks import CAN_PRETEND, graph_obstacle, step_elsewhere
from helpers import REQUEST, UNWATCHED
from mixtures import MIXTURES
from prepared import prepared, two_edits
from recorded import record_graphs
from tiny import metaspace_tokenizer
from transformers import masking_utils
from zoo import ZOO

import rome_fast
from rome_fast.errors import NonFiniteError
from rome_fast.hparams import SOLVERS
from rome_fast.model.spec import ModelSpec
from rome_fast.value import buckets, graph
from rome_fast.value.buckets import Buckets
from rome_fast.value.key import mean_keys
from rome_fast.value.optimize import optimize_values
from rome_fast.value.search import Search
from rome_fast.value.suffix_forward import SuffixForward

TRANSFORMERS_4 = transformers.__version__.startswith("4.")
# Routers ask how many tokens go to each expert, but for Llama 4's, where all experts run; a layer
# of Mllama looks at an image and has no keys.
GRAPHLESS = (*(name for name in MIXTURES if name != "Llama 4"), "Mllama")
FAMILIES = ["GPT2", "Llama", "Gemma2", "Mistral", "GPTJ", "Bloom", "Falcon"]


@pytest.fixture
def captures(monkeypatch):
    """The graphs that were captured; every model is searched as one on a GPU would be."""
    yield record_graphs(monkeypatch)
    graph._graphs.clear()


def eager_mask_of_transformers_5_17(*args, dtype=torch.float32, **kwargs):
    """Which copies a number from the host."""
    kept = masking_utils.sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return torch.where(
        kept, torch.tensor(0.0, device=kept.device, dtype=dtype), torch.finfo(dtype).min
    )


@pytest.fixture
def matmul_precision():
    """Sets that of float32 products on a GPU."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision

    def set_to(precision):
        matmul.fp32_precision = precision

    yield set_to
    set_to(before)


def searched(family, batch, hparams, **options):
    """The values of a batch, found by the usual steps and by replays."""
    model, projection, first = prepared(family, 1, batch)
    init = torch.stack([keys.value_init for keys in mean_keys(projection, batch, first)])
    return model, optimize_values(
        ModelSpec.of(model), projection, batch, first, init, hparams, **options
    )


def assert_same(found, expected):
    for value, other in zip(found, expected, strict=True):
        assert value.losses == pytest.approx(other.losses, rel=1e-5, abs=1e-6)
        torch.testing.assert_close(value.value_delta, other.value_delta, rtol=1e-4, atol=1e-5)
        assert not value.uncaptured and not value.obstacle


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_replays_find_what_steps_do(family, solver, hparams, captures, monkeypatch):
    if TRANSFORMERS_4 and family == "Falcon":
        pytest.skip("Falcon of transformers 4 looks into its mask: it cannot be captured")
    hparams = hparams.replace(v_num_grad_steps=8, solver=solver)
    _, found = searched(family, two_edits(), hparams)
    [capture] = captures
    assert capture.n_replays == 8
    monkeypatch.setattr(graph, "is_wanted", lambda *_: False)
    assert_same(found, searched(family, two_edits(), hparams)[1])
    assert len(captures) == 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_found_ends_and_the_rest_goes_on(solver, hparams, captures, monkeypatch):
    """On the device; the host hears of it some steps later, and nothing has changed meanwhile."""
    hparams = hparams.replace(
        v_num_grad_steps=60, v_stop_loss=4.6, variant="original", solver=solver
    )
    _, found = searched("GPT2", two_edits(), hparams)
    lengths = [len(value.losses) for value in found]
    assert lengths[1] < lengths[0] < 60
    assert captures[0].n_replays == max(lengths) + graph.LAG
    monkeypatch.setattr(graph, "is_wanted", lambda *_: False)
    assert_same(found, searched("GPT2", two_edits(), hparams)[1])


def test_one_graph_serves_requests_of_many_lengths(gpt2, settings, captures):
    model, tok = gpt2
    targets, subjects = ("Paris", "Rome", "Lyon"), ("Steve Jobs", "Bill Gates the elder", "Ada")
    requests = [
        {**REQUEST, "subject": subject, "target_new": target}
        for subject in subjects
        for target in targets
    ]
    settings["hparams"] = settings["hparams"].replace(v_num_grad_steps=4)
    settings["health"] = UNWATCHED
    with rome_fast.Session(model, tok, **settings, form="weight") as session:
        results = [session.edit(request) for request in requests]
    assert len({len(result.target_tokens) for result in results}) > len(captures) == 1
    assert captures[0].n_replays == 4 * len(requests)


def test_a_window_is_filled_up_and_says_what_single_edits_do(gpt2, settings, captures, monkeypatch):
    """Five requests run in the graph of six; the sixth is nobody's."""
    model, tok = gpt2
    subjects = ("Steve Jobs", "Bill Gates", "Ada", "Alan Turing", "Grace Hopper")
    requests = [{**REQUEST, "subject": subject} for subject in subjects]
    together = {"order": "independent", "window": len(requests)}

    def losses():
        with rome_fast.trial(model, tok, requests, **settings, **together) as results:
            return [result.losses for result in results]

    found = losses()
    [graphs] = graph._graphs.values()
    [kept] = graphs._kept.values()
    assert len(found) == 5 and len(kept._offsets.deltas) == 6
    monkeypatch.setattr(graph, "is_wanted", lambda *_: False)
    monkeypatch.setitem(buckets._OF_DEVICE, "cpu", Buckets())
    for a, b in zip(found, losses(), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def test_the_weight_is_read_where_it_is(gpt2, settings, captures, monkeypatch):
    """An edit writes into a weight that a captured graph reads: the next search sees it."""
    model, tok = gpt2
    settings["hparams"] = settings["hparams"].replace(v_num_grad_steps=6, layers=[0])
    requests = [REQUEST, {**REQUEST, "subject": "Bill Gates"}, REQUEST]

    def losses():
        with rome_fast.trial(model, tok, requests, **settings) as results:
            return [result.losses for result in results]

    found = losses()
    assert captures
    monkeypatch.setattr(graph, "is_wanted", lambda *_: False)
    for a, b in zip(found, losses(), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def test_a_graph_is_not_used_with_other_weights(hparams, captures):
    batch, hparams = two_edits(), hparams.replace(v_num_grad_steps=3)
    model, projection, first = prepared("Llama", 1, batch)
    init = torch.stack([keys.value_init for keys in mean_keys(projection, batch, first)])

    def search(hparams):
        """As each opening of the model does: it is looked through anew."""
        optimize_values(ModelSpec.of(model), projection, batch, first, init, hparams)

    search(hparams)
    search(hparams)
    assert len(captures) == 1
    search(hparams.replace(v_lr=0.1))
    assert len(captures) == 2
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
    search(hparams)
    assert len(captures) == 3


def test_a_graph_is_not_used_at_another_precision(hparams, captures, matmul_precision):
    """Set by torch's newer names, beside which the older ones raise."""
    batch, hparams = two_edits(), hparams.replace(v_num_grad_steps=2)
    model, projection, first = prepared("GPT2", 1, batch)
    init = torch.stack([keys.value_init for keys in mean_keys(projection, batch, first)])
    for precision in ("ieee", "tf32", "ieee"):
        matmul_precision(precision)
        optimize_values(ModelSpec.of(model), projection, batch, first, init, hparams)
    assert len(captures) == 2


def test_a_model_is_freed_with_its_graphs(hparams, captures):
    model, _ = searched("GPT2", two_edits(), hparams.replace(v_num_grad_steps=2))
    assert len(graph._graphs) == 1
    captures.clear()
    del model, _
    gc.collect()
    assert len(graph._graphs) == 0


@pytest.mark.parametrize("asks", [True, False], ids=["it asks", "it is wrong"])
def test_what_cannot_be_captured_is_searched_as_usual_and_said(asks, hparams, captures):
    batch, hparams = two_edits(), hparams.replace(v_num_grad_steps=5)
    model, projection, first = prepared("Llama", 1, batch)
    calls = []

    def look(module, args, output):
        calls.append(bool(output.sum() > 0) if asks else None)
        # Python that runs again in each usual step, and never in a replay.
        return None if asks or len(calls) != 2 else output.roll(1, -1)

    init = torch.stack([keys.value_init for keys in mean_keys(projection, batch, first)])
    handle = model.model.layers[2].register_forward_hook(look)
    values = optimize_values(ModelSpec.of(model), projection, batch, first, init, hparams)
    n_calls = len(calls)
    values += optimize_values(ModelSpec.of(model), projection, batch, first, init, hparams)
    handle.remove()
    assert len(calls) == n_calls + hparams.v_num_grad_steps, "it is not tried again"
    said = "not permitted when stream is capturing" if asks else "is off by"
    for value in values:
        assert said in value.uncaptured and any(said in text for text in value.findings())
        assert len(value.losses) == 5


def test_it_is_tried_again_without_the_hook_that_ended_it(gpt2, settings, captures):
    """Which the next edit of the same model may be made without."""
    model, tok = gpt2
    calls = []

    def ask(module, args, output):
        calls.append(bool(output.sum() > 0))

    def edited():
        calls.clear()
        with rome_fast.trial(model, tok, REQUEST, **settings) as result:
            return any("CUDA graph" in text for text in result.warnings), len(calls)

    handle = model.transformer.h[2].mlp.register_forward_hook(ask)
    (first_warns, first), (again_warns, again) = edited(), edited()
    assert first_warns and again_warns and not captures
    assert first == again + 1, "the second edit has no step to try it with"
    handle.remove()
    warns, _ = edited()
    assert not warns and len(captures) == 1


@pytest.mark.parametrize(("step", "stop_loss"), [(1, 0.05), (3, 0.05), (3, 1e9)])
def test_a_loss_that_is_not_finite_is_told(step, stop_loss, hparams, captures, monkeypatch):
    """The device ends the search; the host finds the step by the losses that are there.

    Also after a loss that was low enough, while a context still disagreed.
    """
    own = SuffixForward.logits
    hparams = hparams.replace(v_num_grad_steps=6, v_stop_loss=stop_loss)
    limit = {1: -1.0, 3: 0.5}[step]

    def logits(self, deltas):
        moved = deltas.detach().norm() > limit
        return own(self, deltas) + torch.where(moved, float("nan"), 0.0)

    if step == 1:
        monkeypatch.setattr(Search, "check", lambda *_: None)
        monkeypatch.setattr(graph.StepGraph, "_check_gradients", lambda _: None)
    monkeypatch.setattr(SuffixForward, "logits", logits)
    with pytest.raises(NonFiniteError, match=r"loss became nan at step \d of v\* in layer 1"):
        searched("GPT2", two_edits(), hparams)
    [capture] = captures
    assert capture.n_replays >= step


def test_lack_of_memory_is_told_and_frees_the_graphs(gpt2, settings, captures, monkeypatch):
    """Half the rows are tried, as where the usual steps run out of memory."""
    model, tok = gpt2

    class Full:
        def __init__(self, step, pool):
            raise torch.OutOfMemoryError("CUDA out of memory")

    forgotten = []
    monkeypatch.setattr(graph, "Captured", Full)
    monkeypatch.setattr(graph, "forget", forgotten.append)
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    assert any("rows at a time" in text for text in result.warnings)
    assert forgotten == [model]


@pytest.mark.skipif(
    not CAN_PRETEND, reason="transformers 4 makes masks inside of vmap, where nothing is pretended"
)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_moves_nothing_between_devices(family, solver, hparams, monkeypatch):
    """A copy from the host waits for it, which a stream that is captured cannot."""
    monkeypatch.setattr(masking_utils, "eager_mask", eager_mask_of_transformers_5_17)
    monkeypatch.setitem(
        masking_utils.ALL_MASK_ATTENTION_FUNCTIONS, "eager", eager_mask_of_transformers_5_17
    )
    model, _, _ = prepared(family, 1, two_edits())
    assert not step_elsewhere(model, two_edits(), hparams.replace(solver=solver))


@pytest.mark.exhaustive
@pytest.mark.parametrize("member", ZOO, ids=lambda member: member.name)
def test_the_step_of_every_family_can_be_captured(member):
    tok = metaspace_tokenizer()
    model = member.build(len(tok))
    if model is None:
        pytest.skip(f"transformers {transformers.__version__} does not have {member.name}")
    where = {"layer": member.layer, "shared_expert": member.shared_expert}
    obstacle = graph_obstacle(model, tok, member.request, **where)
    assert bool(obstacle) == member.name.startswith(GRAPHLESS), obstacle


def test_it_is_only_for_a_gpu_and_not_for_plain_torch(hparams):
    batch = two_edits()
    model, projection, first = prepared("Llama", 1, batch)
    search = Search(ModelSpec.of(model), projection, batch, first)
    assert not graph.is_wanted(search, "auto")
    assert isinstance(search.suffix, SuffixForward)
