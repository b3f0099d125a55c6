"""A request whose rows do not fit in memory runs in parts, and gives the same edit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from family_checks import case, compare, expected_of, options, values_found
from helpers import CONTEXTS, REQUEST, same_bits, state
from prepared import random_edit
from structures import STRUCTURES, built

import rome_fast
from rome_fast.errors import InsufficientMemoryError
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.encode import encode
from rome_fast.value import context_states, first_pass, window
from rome_fast.value.batch import EditBatch, joined
from rome_fast.value.first_pass import run_first_pass, run_in_parts
from rome_fast.value.memory import estimate
from rome_fast.value.search import Search

OTHER = {"prompt": "It is {}", "subject": "Marie Curie", "target_new": "near"}


def tokens_of(tok, request=REQUEST):
    return encode(tok, rome_fast.EditRequest.parse(request), CONTEXTS)


def activations(model, tokens, n_rows, layer=1):
    spec = ModelSpec.of(model)
    return estimate(spec, spec.down_projection(layer), [tokens], rows_at_once=n_rows).activations


def room_for(monkeypatch, model, tokens, n_rows):
    """Free memory for so many rows of a request and not for more."""
    room = activations(model, tokens, n_rows)
    assert room < activations(model, tokens, n_rows + 1)
    monkeypatch.setattr(window, "free_bytes", lambda *_: int(window.MARGIN * room) + 1)


def test_parts_are_the_rows_and_their_reads_in_order():
    batch = EditBatch.of([random_edit(1, [0, 3, 7, 1, 2], 3)])
    parts = batch.parts(2)
    assert [part.n_rows for part in parts] == [2, 2, 1]
    for name in ("input_ids", "attention_mask", "lookup_idx", "edit_of_row", "target_ids"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(batch, name))
    firsts = [0, 2, 4]
    rows = torch.cat([p.read_rows + n for p, n in zip(parts, firsts, strict=True)])
    assert torch.equal(rows, batch.read_rows)
    assert torch.equal(torch.cat([p.read_positions for p in parts]), batch.read_positions)


def test_what_parts_read_is_joined_with_the_kl_prompt_last():
    """Facts that are kept have rows behind its own."""
    parts = [SimpleNamespace(target_ids=torch.zeros(n)) for n in (2, 1)]
    with_kl, facts = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([[2.0]])
    assert joined(parts, [with_kl, facts]).flatten().tolist() == [0, 1, 2, 9]


@pytest.mark.covering
@pytest.mark.parametrize("n_rows", [1, 2])
@pytest.mark.parametrize("family", STRUCTURES)
def test_in_parts_it_is_the_same_edit(family, n_rows, monkeypatch):
    model, tok = built(family, STRUCTURES[family])
    request = case()
    settings = options(model, 1)
    expected = expected_of(model, tok, request, settings["hparams"])
    with rome_fast.trial(model, tok, request, **settings) as at_once:
        assert not any("rows at a time" in text for text in at_once.warnings)
    room_for(monkeypatch, model, tokens_of(tok, request), n_rows)
    with values_found() as values, rome_fast.trial(model, tok, request, **settings) as result:
        found = [text for text in result.warnings if f"{n_rows} of 4 rows at a time" in text]
        assert re.search(r"at once they would take about \d+ [KM]iB of memory", *found)
        exact = compare(result, values[-1], expected)
        assert exact.holds, exact
    assert result.losses == pytest.approx(at_once.losses, rel=1e-5)
    assert (result.prob_before, result.rank_before) == pytest.approx(
        (at_once.prob_before, at_once.rank_before), rel=1e-4
    )


def test_a_bare_prompt_of_its_own_and_bfloat16_copies_run_in_parts(gpt2, settings, monkeypatch):
    model, tok = gpt2
    settings["context_templates"] = CONTEXTS[1:]
    settings["hparams"] = settings["hparams"].replace(compute_dtype="bfloat16")
    tokens = encode(tok, rome_fast.EditRequest.parse(REQUEST), CONTEXTS[1:])
    with rome_fast.trial(model, tok, REQUEST, **settings) as at_once:
        pass
    room_for(monkeypatch, model, tokens, 1)
    with rome_fast.trial(model, tok, REQUEST, **settings) as result:
        assert any("1 of 4 rows at a time" in text for text in result.warnings)
    assert result.losses == pytest.approx(at_once.losses, rel=0.03)


def test_the_whole_model_runs_in_parts_too(gpt2, settings, monkeypatch):
    model, tok = gpt2
    with rome_fast.trial(model, tok, REQUEST, **settings) as usual:
        pass
    own = model.forward

    def without_cache(input_ids, attention_mask=None, use_cache=None):
        sizes.append(len(input_ids))
        return own(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    sizes = []
    monkeypatch.setattr(model, "forward", without_cache)
    room_for(monkeypatch, model, tokens_of(tok), 2)
    with rome_fast.trial(model, tok, REQUEST, **settings) as result:
        pass
    assert set(sizes) == {1, 2}  # one row is what is read afterwards
    assert any("2 of 4 rows" in text for text in result.warnings)
    assert any("whole model" in text for text in result.warnings)
    assert result.losses == pytest.approx(usual.losses, rel=1e-4)


def test_what_a_part_keeps_for_its_gradients_is_dropped(gpt2):
    """Between forward and backward nothing of a part is held but its logits."""
    model, tok = gpt2
    model.requires_grad_(False)
    batch = EditBatch.of([tokens_of(tok)])
    projection = ModelSpec.of(model).down_projection(1)
    kept = []
    deltas = torch.zeros(1, 64, requires_grad=True)
    for first in (
        run_first_pass(ModelSpec.of(model), projection, batch),
        run_in_parts(ModelSpec.of(model), projection, batch, 1),
    ):
        search = Search(ModelSpec.of(model), projection, batch, first)
        kept.append(0)

        def pack(x):
            kept[-1] += x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            search.logits(deltas)
    assert kept[0] > 0 and kept[1] <= 4 * deltas.nbytes


def test_when_an_allocation_fails_half_of_the_rows_run(gpt2, settings, monkeypatch):
    model, tok = gpt2
    with rome_fast.trial(model, tok, [REQUEST, OTHER], progress=False, **settings) as at_once:
        pass
    sizes, own = [], first_pass.run_first_pass

    def with_room_for_two(model, projection, batch, *below):
        sizes.append(batch.n_rows)
        if batch.n_rows > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return own(model, projection, batch, *below)

    monkeypatch.setattr(context_states, "run_first_pass", with_room_for_two)
    monkeypatch.setattr(first_pass, "run_first_pass", with_room_for_two)
    with rome_fast.trial(model, tok, [REQUEST, OTHER], progress=False, **settings) as results:
        pass
    # The second request begins where the first has ended up.
    assert sizes == [4, 2, 2, 2, 2]
    for result, expected in zip(results, at_once, strict=True):
        assert result.losses == pytest.approx(expected.losses, rel=1e-4)
        torch.testing.assert_close(
            result.update.dense(), expected.update.dense(), rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("known", [True, False])
def test_where_no_row_fits_the_error_says_what_it_takes(tiny, settings, known, monkeypatch):
    model, tok = tiny
    before = state(model)
    needed = activations(model, tokens_of(tok), 1)
    if known:
        monkeypatch.setattr(window, "free_bytes", lambda *_: needed)
        there = f"there is room for {needed / window.MARGIN / 2**10:.0f} KiB"
    else:

        def full(*arguments):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(window, "free_bytes", lambda *_: None)
        monkeypatch.setattr(window, "optimize_values", full)
        there = "an allocation failed"
    length = tokens_of(tok).input_ids.shape[1]
    message = (
        f"no memory for a request of {length} tokens in 3 contexts: with one row at a time it "
        f"takes about {needed / 2**10:.0f} KiB, and {there}: shorten the prompt, give fewer "
        "context_templates, or load the model in bfloat16"
    )
    with pytest.raises(InsufficientMemoryError, match=re.escape(message)):
        rome_fast.edit(model, tok, REQUEST, **settings)
    assert same_bits(model, before)


def test_a_session_refuses_what_does_not_fit_and_goes_on(gpt2, settings):
    model, tok = gpt2
    with rome_fast.Session(model, tok, **settings, form="weight") as session:
        limit = pytest.MonkeyPatch()
        with limit.context() as patch:
            patch.setattr(window, "free_bytes", lambda *_: 1)
            [refused] = session.edit_many([REQUEST], progress=False)
        assert not refused.success and "no memory for a request" in str(refused)
        assert session.edit(OTHER).success


LONG = """
import resource, sys, warnings
import torch
from transformers import GPT2Config, GPT2LMHeadModel
sys.path[:0] = sys.argv[2:]
from tiny import byte_level_tokenizer
import rome_fast

torch.set_num_threads(1)
tok = byte_level_tokenizer()
torch.manual_seed(0)
sizes = {"n_positions": 2300, "n_embd": 64, "n_layer": 4, "n_head": 4}
model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tok), **sizes)).eval()
contexts = ["{}", *(f"{word} is here. {{}}" for word in "The She He It They We".split())]
hparams = rome_fast.RomeHparams(layers=[1], v_num_grad_steps=3, v_lr=0.05, v_weight_decay=0)
options = {"second_moment": "identity", "context_templates": contexts}

def edit(prompt):
    request = {"prompt": prompt, "subject": "Steve Jobs", "target_new": "capital"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with rome_fast.trial(model, tok, request, hparams, **options) as result:
            pass
    return result.losses, any("rows at a time" in str(w.message) for w in caught)

edit("The founder is {}")
prompt = 220 * "The founder is a man. " + "{} is"
n_tokens = len(tok(prompt)["input_ids"])
if float(sys.argv[1]):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    limit = used + int(float(sys.argv[1]) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
losses, in_parts = edit(prompt)
print(n_tokens, in_parts, *losses)
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_a_prompt_of_2000_tokens_in_a_process_with_little_memory(request):
    def edited(mib):
        paths = [str(request.config.rootpath / "tests" / "support"), str(request.config.rootpath)]
        command = [sys.executable, "-c", LONG, str(mib), *paths]
        # Else each thread's heap sets 64 MiB of addresses aside, which the limit counts.
        settings = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=settings)
        assert done.returncode == 0, done.stderr[-2000:]
        n_tokens, in_parts, *losses = done.stdout.splitlines()[-1].split()
        return int(n_tokens), in_parts == "True", [float(loss) for loss in losses]

    n_tokens, in_parts, expected = edited(0)
    assert n_tokens > 1500 and not in_parts
    _, in_parts, losses = edited(140)
    assert in_parts and losses == pytest.approx(expected, rel=1e-4)


def test_an_update_above_half_of_the_weights_norm_is_named(gpt2, settings):
    model, tok = gpt2
    weight = model.transformer.h[1].mlp.c_proj.weight
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    small = [text for text in result.warnings if "of the weight's norm" in text]
    assert bool(small) == (result.relative_norm >= 0.5)
    result.revert()
    with torch.no_grad():
        weight.mul_(0.05)
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    assert result.relative_norm > 0.5
    share = f"{result.relative_norm:.0%}"
    assert any(f"the update is {share} of the weight's norm" in w for w in result.warnings)
