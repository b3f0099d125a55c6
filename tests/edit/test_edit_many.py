"""Many edits: one after the other, or a window of them searched and solved together."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import REQUEST, same_bits, state

import rome_fast
from rome_fast.edit import opened
from rome_fast.errors import EditFailedError, EditRejectedError, EditWarning
from rome_fast.model.spec import ModelSpec
from rome_fast.testing import assert_close
from rome_fast.update.joint import apply_updates_, count_independent
from rome_fast.update.solve import Constraint
from rome_fast.update.undo import WeightHistory
from rome_fast.value import context_states, window

REQUESTS = [
    REQUEST,
    {"prompt": "We drink tea with {}", "subject": "Ada Lovelace", "target_new": "near"},
    {"prompt": "The old tower is {}", "subject": "Eiffel Tower", "target_new": "women machine"},
    {"prompt": "It is {}", "subject": "Marie Curie", "target_new": "river"},
]


@pytest.fixture
def independent(settings):
    return {**settings, "order": "independent", "progress": False}


def close(results, expected, rtol=1e-4):
    for a, b in zip(results, expected, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=rtol)
        difference = (a.update.dense() - b.update.dense()).norm()
        assert difference <= rtol * b.update.dense().norm()


def test_a_window_of_one_is_the_exact_order(tiny, settings, independent):
    model, tok = tiny
    with rome_fast.trial(model, tok, REQUESTS, progress=False, **settings) as exact:
        bits = state(model)
    with rome_fast.trial(model, tok, REQUESTS, window=1, **independent) as alone:
        assert same_bits(model, bits)
    assert [r.window for r in exact + alone] == [1] * 8


def test_values_of_a_window_are_those_that_each_request_has_alone(tiny, settings, independent):
    model, tok = tiny
    # Within reach, so that some end early.
    settings["hparams"] = settings["hparams"].replace(v_stop_loss=2.0)
    independent = {**independent, "hparams": settings["hparams"]}
    alone = []
    for request in REQUESTS:
        with rome_fast.trial(model, tok, request, **settings) as result:
            alone.append(result)
    together = rome_fast.edit_many(model, tok, REQUESTS, **independent)
    assert len({len(result.losses) for result in together}) > 1  # they end at different steps
    for a, b in zip(together, alone, strict=True):
        assert a.window == 4
        assert a.losses == pytest.approx(b.losses, rel=1e-4)
        assert (a.prob_before, a.argmax_before) == (
            pytest.approx(b.prob_before, rel=1e-4),
            b.argmax_before,
        )


def test_results_say_what_the_model_says_at_the_end_of_the_window(tiny, independent):
    model, tok = tiny
    before = state(model)
    results = rome_fast.edit_many(model, tok, REQUESTS, **independent)
    for request, result in zip(REQUESTS, results, strict=True):
        with rome_fast.trial(
            model,
            tok,
            {**request, "target_new": result.request.target},
            **{k: v for k, v in independent.items() if k not in ("order", "progress")},
        ) as again:
            assert again.prob_before == pytest.approx(result.prob_after, rel=1e-3)
    for result in reversed(results):
        result.revert()
    assert same_bits(model, before)


@pytest.mark.parametrize("variant", rome_fast.hparams.VARIANTS)
def test_all_constraints_are_met(gpt2, variant):
    """Rank-n update against the equations, with keys that overlap and a C far from the identity."""
    model, _ = gpt2
    model.requires_grad_(False)
    projection = ModelSpec.of(model).down_projection(1)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    samples = draw(2000, 256) * torch.linspace(0.1, 3, 256)
    moment = rome_fast.SecondMoment.from_moment(samples.T @ samples / 2000, 2000)
    common, constraints = draw(256), []
    for _ in range(5):
        prompt = (0.5 * common + draw(256))[None]
        mean = prompt + 0.1 * draw(256)
        keys, below = {
            "original": (mean, prompt),
            "mean_key": (mean, mean),
            "prompt_key": (prompt, prompt),
            "both_keys": (torch.cat([prompt, mean]),) * 2,
        }[variant]
        constraints.append(Constraint(keys, below, draw(64)))
    before = projection.weight.clone()
    updates = apply_updates_(WeightHistory(projection, "auto"), constraints, moment)
    moved = projection.weight - before
    assert_close(moved, sum(update.dense() for update in updates))
    for constraint in constraints:
        for key in constraint.denominator_keys:
            torch.testing.assert_close(key @ moved, constraint.residual, rtol=1e-3, atol=1e-3)
    # The least such change in the metric of C: its rows lie in the span of C^-1 keys.
    keys = torch.cat([c.keys for c in constraints]).double()
    span = torch.linalg.qr(torch.linalg.solve(moment.moment().double(), keys.T)).Q
    rest = moved.double() - span @ (span.T @ moved.double())
    assert rest.norm() < 1e-4 * moved.norm()


def test_a_window_ends_before_a_request_on_the_same_subject(tiny, independent):
    model, tok = tiny
    requests = [REQUESTS[0], REQUESTS[1], {**REQUESTS[0], "target_new": "old"}, REQUESTS[3]]
    results = rome_fast.edit_many(model, tok, requests, **independent)
    assert [result.window for result in results] == [2, 2, 2, 2]
    assert [result.request.target for result in results] == ["capital", "near", "old", "river"]


def test_dependent_keys_are_counted_out():
    keys = torch.eye(4)
    near = (keys[0] + keys[1] + 0.01 * keys[3])[None]
    three = [Constraint(k, k, torch.ones(2)) for k in (keys[:1], keys[1:2], near)]
    assert count_independent(three, None) == 2
    assert count_independent(three[:2], None) == 2
    far = (keys[0] + keys[1] + keys[3])[None]
    assert count_independent([*three[:2], Constraint(far, far, torch.ones(2))], None) == 3


def test_a_joint_update_out_of_proportion_is_refused_before_it_is_written(gpt2):
    model, _ = gpt2
    projection = ModelSpec.of(model.requires_grad_(False)).down_projection(1)
    before = state(model)
    a, b = torch.eye(256)[:1], torch.eye(256)[1:2]
    bad = Constraint(a, 1e-5 * a + b, torch.ones(64))  # the key hardly answers its denominator
    good = Constraint(torch.eye(256)[2:3], torch.eye(256)[2:3], torch.ones(64))
    with pytest.raises(EditRejectedError, match="fewer requests at once"):
        apply_updates_(WeightHistory(projection, "auto"), [good, bad], None)
    nan = Constraint(b, b, torch.full((64,), float("nan")))
    with pytest.raises(EditRejectedError, match="not finite"):
        apply_updates_(WeightHistory(projection, "auto"), [good, nan], None)
    assert same_bits(model, before)


def test_little_memory_means_smaller_batches_and_the_same_values(gpt2, independent, monkeypatch):
    model, tok = gpt2
    with rome_fast.trial(model, tok, REQUESTS, **independent) as at_once:
        pass
    sizes, own = [], context_states.run_first_pass

    def with_room_for_two(model, projection, batch, *below):
        sizes.append(batch.n_edits)
        if batch.n_edits > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(model, projection, batch, *below)

    monkeypatch.setattr(context_states, "run_first_pass", with_room_for_two)
    with rome_fast.trial(model, tok, REQUESTS, **independent) as halved:
        pass
    close(halved, at_once)
    assert sizes == [4, 2, 2]
    monkeypatch.setitem(window.BATCH_BYTES, "cpu", 0)
    sizes.clear()
    with rome_fast.trial(model, tok, REQUESTS, **independent) as one_by_one:
        pass
    assert sizes == [1, 1, 1, 1]
    close(one_by_one, at_once)


def test_strict_undoes_all(tiny, independent):
    model, tok = tiny
    before = state(model)
    hparams = independent["hparams"].replace(v_num_grad_steps=2)
    with pytest.raises(EditFailedError, match="strict=True"):
        rome_fast.edit_many(
            model, tok, REQUESTS, **{**independent, "hparams": hparams, "strict": True}
        )
    assert same_bits(model, before)


def test_contexts_without_the_bare_prompt(tiny, independent):
    """The bare prompt then has a row of its own, and is read by itself."""
    model, tok = tiny
    contexts = {"context_templates": ["He is a man. {}", "The weather was fine. {}"]}
    results = rome_fast.edit_many(model, tok, REQUESTS[:2], **{**independent, **contexts})
    assert all(result.rank_before > 1 for result in results[:1])
    assert [result.window for result in results] == [2, 2]


def test_a_bar_counts_the_edits_and_warnings_name_the_callers_line(
    gpt2, settings, capsys, monkeypatch
):
    model, tok = gpt2
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # elsewhere there is no bar
    settings["hparams"] = settings["hparams"].replace(v_num_grad_steps=2)
    with pytest.warns(EditWarning) as caught:
        rome_fast.edit_many(model, tok, REQUESTS[:2], **settings)
    said = capsys.readouterr().err
    assert "2/2" in said and "at once" in said
    assert {warning.filename for warning in caught} == {__file__}


def test_memory_is_told_before_it_is_taken(gpt2, settings, monkeypatch):
    model, tok = gpt2
    events, own = [], context_states.run_first_pass

    def noted(*given):
        events.append("run")
        return own(*given)

    monkeypatch.setattr(context_states, "run_first_pass", noted)
    given = [settings[name] for name in ("context_templates", "second_moment")]
    with opened(model, tok, settings["hparams"], None, "auto", *given) as editor:
        editor.tell = events.append
        requests = [rome_fast.EditRequest.parse(request) for request in REQUESTS]
        editor.find(requests, answers=False)
        edits = editor.encoded(requests)
        alone = [editor._search.bytes_at_once([edit]) for edit in edits]
        assert editor._search.bytes_at_once(edits) > max(alone)
        editor._search._budget = 0
        assert editor._search.bytes_at_once(edits) == max(alone)
    told, *rest = events
    assert told.startswith("about ") and told.endswith(" at once") and rest == ["run"]
