"""evaluate() against the plain case-by-case implementation, and what it leaves behind."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import reference
import torch
from helpers import CONTEXTS, REQUEST, same_bits, state
from shared_data import shared

import rome_fast
from rome_fast import EditRecord, EditRequest
from rome_fast.errors import (
    EditRejectedError,
    InvalidArgumentError,
    NonFiniteError,
    RecordWarning,
)
from rome_fast.evaluate.judge import Judge
from rome_fast.evaluate.records import Question


@pytest.fixture(scope="module")
def _demo():
    """The embedded model in float64: what batches round differently is then below 1e-9."""
    model, tok, facts = rome_fast.demo.load()
    return model.double(), tok, facts


@pytest.fixture
def demo(_demo):
    model, tok, facts = _demo
    return copy.deepcopy(model), tok, [fact.record() for fact in facts[:600:150]]


@pytest.fixture
def cheap():
    """Keyword arguments of an evaluation that needs no sampling and no generation."""
    return {
        "second_moment": "identity",
        "context_templates": CONTEXTS,
        "generate_tokens": 0,
        "progress": False,
    }


def edit_settings(cheap):
    return {k: cheap[k] for k in ("second_moment", "context_templates")}


def agree(evaluation, expected, atol=1e-6):
    """Every case's values and every mean are those of the reference."""
    for case, wanted in zip(evaluation.cases, expected, strict=True):
        assert case.stages.keys() == wanted.keys()
        for stage, values in wanted.items():
            assert case.stages[stage].values == pytest.approx(values, abs=atol), case.case_id
    for stage, metrics in evaluation.metrics.items():
        means = {name: metric.mean for name, metric in metrics.items()}
        assert means == pytest.approx(reference.means(expected, stage), abs=atol)


def test_single_mode_is_each_record_alone(demo, cheap):
    model, tok, records = demo[0], demo[1], demo[2][:3]
    groups = {"near": records[1].neighborhood[:2]}
    records[0] = dataclasses.replace(records[0], locality=groups, portability=groups)
    records[2] = dataclasses.replace(records[2], target_true=None, neighborhood=())
    before = state(model)
    expected = reference.single(model, tok, records, **edit_settings(cheap))
    for window in (2, 1):
        evaluation = rome_fast.evaluate(model, tok, records, window=window, **cheap)
        assert same_bits(model, before)
        agree(evaluation, expected)
    assert evaluation.metrics["after"]["ES"].mean == 1 > evaluation.metrics["before"]["ES"].mean
    assert evaluation.metrics["after"]["ES"].n == 2
    for case, record in zip(evaluation.cases, records, strict=True):
        with rome_fast.trial(model, tok, record.request, **edit_settings(cheap)) as result:
            assert case.update_norm == pytest.approx(result.update_norm, rel=1e-6)
            assert case.relative_norm == pytest.approx(result.relative_norm, rel=1e-6)
            assert case.losses == pytest.approx(result.losses, rel=1e-6)


def test_sequential_mode_is_a_sequence_of_edits(demo, cheap):
    model, tok, records = demo[0], demo[1], demo[2][:3]
    before = state(model)
    evaluation = rome_fast.evaluate(model, tok, records, "sequential", **cheap)
    assert same_bits(model, before)
    expected, retained = reference.sequential(model, tok, records, **edit_settings(cheap))
    agree(evaluation, expected)
    assert [(c.n_edits, c.retained) for c in evaluation.retention] == list(enumerate(retained, 1))
    assert evaluation.cases[0].stages["edit_time"] != evaluation.cases[0].stages["after"]


def test_a_long_sequence_has_ten_checkpoints(tiny, settings, cheap):
    model, tok = tiny
    records = [EditRequest.parse(REQUEST)] * 23
    hparams = settings["hparams"].replace(v_num_grad_steps=2)
    found = rome_fast.evaluate(model, tok, records, "sequential", hparams, **cheap)
    assert [c.n_edits for c in found.retention] == [2, 5, 7, 9, 12, 14, 16, 18, 21, 23]


@pytest.fixture
def requests():
    return [
        REQUEST,
        {"prompt": "We drink tea with {}", "subject": "Ada Lovelace", "target_new": "near"},
        {"prompt": "The old tower is {}", "subject": "Eiffel Tower", "target_new": "women machine"},
    ]


@pytest.mark.parametrize("mode", ["single", "sequential"])
def test_nothing_is_left_behind(tiny, requests, settings, cheap, mode):
    model, tok = tiny
    model.train()
    model.transformer.h[0].eval() if hasattr(model, "transformer") else None
    modes_before = [module.training for module in model.modules()]
    trainable = [p.requires_grad for p in model.parameters()]
    tok.padding_side = "left"
    torch.manual_seed(3)
    seed, before = torch.get_rng_state(), state(model)
    rome_fast.evaluate(model, tok, requests, mode, settings["hparams"], **cheap)
    assert same_bits(model, before)
    assert torch.equal(torch.get_rng_state(), seed)
    assert [module.training for module in model.modules()] == modes_before
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (tok.padding_side, tok.pad_token) == ("left", None)


@pytest.mark.parametrize("mode", ["single", "sequential"])
def test_weights_are_back_after_ctrl_c(gpt2, requests, settings, cheap, monkeypatch, mode):
    model, tok = gpt2
    before = state(model)

    def interrupted(judge, numbers, updates=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(Judge, "stages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rome_fast.evaluate(model, tok, requests, mode, settings["hparams"], **cheap)
    assert same_bits(model, before)


def test_half_precision_is_judged_by_what_is_written(tiny, requests, settings, cheap):
    model, tok = tiny
    model.bfloat16()
    before = state(model)
    hparams = settings["hparams"]
    evaluation = rome_fast.evaluate(model, tok, requests, hparams=hparams, window=1, **cheap)
    assert same_bits(model, before)
    for case in evaluation.cases:
        options = {"hparams": hparams, **edit_settings(cheap)}
        with rome_fast.trial(model, tok, case.request, **options) as result:
            assert case.stages["after"].values["rewrite_prob"] == pytest.approx(
                result.prob_after, rel=1e-5
            )


@pytest.mark.parametrize("space", [True, False])
def test_the_edited_prompt_is_asked_with_the_space_of_its_request(gpt2, settings, cheap, space):
    model, tok = gpt2
    request = rome_fast.EditRequest.parse({**REQUEST, "space": space})
    [case] = rome_fast.evaluate(model, tok, [request], hparams=settings["hparams"], **cheap).cases
    options = {"hparams": settings["hparams"], **edit_settings(cheap)}
    with rome_fast.trial(model, tok, request, **options) as result:
        found = {name: stage.values["rewrite_prob"] for name, stage in case.stages.items()}
    wanted = {"before": result.prob_before, "after": result.prob_after}
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("mode", ["single", "sequential"])
def test_a_request_that_is_refused_is_a_case_with_its_reason(
    gpt2, requests, settings, cheap, monkeypatch, mode
):
    model, tok = gpt2
    plain = rome_fast.editor.build_constraint
    # The second request: in single mode first in its window, then alone.
    refused_at = {"single": (2, 4), "sequential": (2,)}[mode]
    seen = []

    def refuse(variant, keys, value_delta):
        made = plain(variant, keys, value_delta)
        seen.append(None)
        if len(seen) in refused_at:
            raise EditRejectedError("its denominator is too small")
        return made

    before = state(model)
    expected = rome_fast.evaluate(
        model, tok, [requests[0], requests[2]], mode, settings["hparams"], **cheap
    )
    monkeypatch.setattr(rome_fast.editor, "build_constraint", refuse)
    found = rome_fast.evaluate(model, tok, requests, mode, settings["hparams"], **cheap)
    assert same_bits(model, before)
    assert [case.index for case in found.failed] == [1]
    refused = found.cases[1]
    assert refused.error == "EditRejectedError: its denominator is too small"
    assert refused.update_norm is None and not refused.losses
    if mode == "single":
        assert refused.stages["after"].values == refused.stages["before"].values
    for case, wanted in zip([found.cases[0], found.cases[2]], expected.cases, strict=True):
        for stage in wanted.stages:
            values = wanted.stages[stage].values
            assert case.stages[stage].values == pytest.approx(values, rel=1e-3)
    assert found.metrics["after"]["rewrite_acc"].n == 3


def test_questions_that_cannot_be_asked_leave_the_other_records_alone(
    gpt2, requests, settings, cheap
):
    model, tok = gpt2
    bad = EditRecord("bad", EditRequest.parse(REQUEST), paraphrases=("He is " * 200,))
    records = [bad, *(EditRecord(i, EditRequest.parse(r)) for i, r in enumerate(requests))]
    found = rome_fast.evaluate(model, tok, records, hparams=settings["hparams"], **cheap)
    assert [case.case_id for case in found.failed] == ["bad"]
    assert "the model takes 128" in found.failed[0].error and not found.failed[0].stages
    said = [case.stages["after"].values["rewrite_acc"] for case in found.cases[1:]]
    accuracy = found.metrics["after"]["rewrite_acc"]
    assert (accuracy.mean, accuracy.n) == (pytest.approx(sum(said) / 4), 4)
    again = rome_fast.evaluate(model, tok, records, "sequential", settings["hparams"], **cheap)
    assert [case.case_id for case in again.failed] == ["bad"]
    assert [len(case.stages) for case in again.cases] == [0, 3, 3, 3]


def test_records_that_could_not_be_read_are_counted(gpt2, requests, settings, cheap):
    model, tok = gpt2
    with pytest.warns(RecordWarning, match="left out 1 of 4 records"):
        records = rome_fast.load_records([*requests, {"prompt": "x"}], on_error="skip")
    assert (len(records), records.n_skipped) == (3, 1)
    found = rome_fast.evaluate(model, tok, records, hparams=settings["hparams"], **cheap)
    assert (found.setting["n_records"], found.setting["n_skipped"]) == (3, 1)
    assert found.metrics["after"]["rewrite_acc"].n == 4 and len(found.cases) == 3
    assert "4 records: 3 edited, 1 skipped, counted as failures" in str(found)


def test_what_would_fail_every_record_ends_the_evaluation(gpt2, requests, settings, cheap):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.bias[0] = float("inf")
    with pytest.raises(NonFiniteError, match="logits are NaN or infinite"):
        rome_fast.evaluate(model, tok, requests, hparams=settings["hparams"], **cheap)


@pytest.mark.exhaustive
def test_generations_and_drift(demo, cheap):
    model, tok, records = demo
    records = records[:2]
    records[1] = dataclasses.replace(
        records[1],
        generation_prompts=("In the old town,",),
        reference_texts=(f"It is {records[1].request.target}.",),
    )
    text = "The cat sat on the table and the dog slept."
    cheap["generate_tokens"] = 3
    found = rome_fast.evaluate(model, tok, records, held_texts=[text], **cheap)
    first, second = found.cases
    assert second.generation_prompts == (records[1].request.text, "In the old town,")
    assert len(second.stages["after"].generations) == 2
    for case, record in zip(found.cases, records, strict=True):
        before, after = (case.stages[stage].generations[0] for stage in ("before", "after"))
        assert before.strip().startswith(record.target_true)
        assert after.strip().startswith(record.request.target)
    assert "reference_score" in second.stages["after"].values
    assert "reference_score" not in first.stages["after"].values
    assert found.drift["before"]["kl"] == pytest.approx(0, abs=1e-9)
    kls = [case.stages["after"].values["kl"] for case in found.cases]
    assert min(kls) > 0 and found.drift["after"]["kl"] == pytest.approx(sum(kls) / 2)
    together = rome_fast.evaluate(model, tok, records, "sequential", held_texts=[text], **cheap)
    assert together.drift["before"] == found.drift["before"]
    assert together.drift["after"]["kl"] == together.retention[-1].kl > 0


def test_setting_names_all_that_the_numbers_depend_on(gpt2, requests, settings, cheap):
    model, tok = gpt2
    setting = rome_fast.evaluate(model, tok, requests, hparams=settings["hparams"], **cheap).setting
    assert setting["mode"] == "single" and setting["n_records"] == 3
    assert setting["hparams"]["layers"] == [1] and setting["context_templates"] == CONTEXTS
    assert setting["weight_name"] == "transformer.h.1.mlp.c_proj.weight"
    assert setting["second_moment"] == "identity" and setting["versions"]["torch"]
    with torch.no_grad():
        model.transformer.h[3].mlp.c_proj.bias[0] += 1
    again = rome_fast.evaluate(model, tok, requests[:1], hparams=settings["hparams"], **cheap)
    assert again.setting["model"]["weights"] != setting["model"]["weights"]
    assert again.setting["records"] != setting["records"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"mode": "batch"}, "mode must be one of"),
        ({"window": 0}, "window must be a whole number of 1 or more, got 0"),
        ({"generate_tokens": 2.5}, "generate_tokens must be a whole number"),
        ({"held_texts": "one text"}, "held_texts must be a list of texts"),
        ({"mode": "sequential", "distributed": True}, "distributed= is for mode='single'"),
        ({"distributed": True}, "needs a process group"),
        ({"records": []}, "no records"),
    ],
)
def test_bad_arguments_are_named(gpt2, requests, cheap, arguments, reason):
    model, tok = gpt2
    with pytest.raises(InvalidArgumentError, match=reason):
        rome_fast.evaluate(model, tok, **{"records": requests, **cheap, **arguments})


@pytest.mark.exhaustive
def test_a_thousand_records_of_counterfact(_demo, cheap):
    """With one step, as it is not the search that is looked at; every 25th by the plain way too.

    ``benchmarks/evaluate/evaluate_speed.py`` compares all of them.
    """
    model, tok, _ = _demo
    before = state(model)
    hparams = rome_fast.RomeHparams.for_model(model).replace(v_num_grad_steps=1)
    records = rome_fast.load_records(shared("counterfact/counterfact-rome.json"), limit=1000)
    evaluation = rome_fast.evaluate(model, tok, records, hparams=hparams, **cheap)
    assert same_bits(model, before)
    assert len(evaluation.cases) == 1000 and not evaluation.failed
    settings = {"hparams": hparams, **edit_settings(cheap)}
    expected = reference.single(model, tok, records[::25], **settings)
    for case, wanted in zip(evaluation.cases[::25], expected, strict=True):
        for stage, values in wanted.items():
            assert case.stages[stage].values == pytest.approx(values, abs=1e-6), case.case_id


def test_questions_are_importable_beside_the_function():
    assert callable(rome_fast.evaluate) and Question("a", "b").target == "b"
