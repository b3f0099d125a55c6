"""suggest_layer: trial edits against edits made and asked one by one, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from helpers import CONTEXTS, same_bits, state

import rome_fast
from rome_fast import RomeHparams, demo
from rome_fast.editor import Editor
from rome_fast.errors import (
    HparamsError,
    InvalidArgumentError,
    NonFiniteError,
)
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.locate import suggest
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.ordinary import ordinary_second_moment
from rome_fast.types import EditRequest

REQUESTS = [
    {"prompt": "The founder is {}", "subject": "Steve Jobs", "target_new": "capital"},
    {"prompt": "She is {}", "subject": "Marie Curie", "target_new": "French town"},
    {"prompt": "He knows {}", "subject": "LeBron James", "target_new": "tea"},
]


def suggested(model, tok, requests, hparams, **options):
    defaults = {
        "second_moment": "identity",
        "context_templates": CONTEXTS,
        "samples": 2,
        "progress": False,
    }
    return rome_fast.suggest_layer(model, tok, requests, hparams, **{**defaults, **options})


def greedy(model, tok, text, n_tokens):
    ids = tok(text, return_tensors="pt")["input_ids"]
    for _ in range(n_tokens):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, -n_tokens:].tolist()


def forced(model, tok, text, target):
    """The likeliest token in each place of the target, the target's own given before it."""
    ids, answer = tok(text)["input_ids"], tok(" " + target)["input_ids"]
    logits = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
    return logits.argmax(-1).tolist()


def likelier(model, tok, text, new, old):
    logits = model(**tok(text, return_tensors="pt")).logits[0, -1]
    return bool(logits[new] >= logits[old])


def records_of(requests):
    """A paraphrase each, and for the first two a neighbour or a group of locality."""
    parsed = [EditRequest.parse(request) for request in requests]
    paraphrases = ["They say it is Steve Jobs"], ["It is Marie Curie"], ["A man is LeBron James"]
    near = (Question("The founder is Ada Lovelace", "chemistry"),)
    local = {"others": (Question("A house is", "French"), Question("The river", "boils"))}
    return [
        EditRecord(
            *(0, parsed[0], "chemistry"),
            paraphrases=tuple(paraphrases[0]),
            neighborhood=near,
        ),
        EditRecord(1, parsed[1], paraphrases=tuple(paraphrases[1]), locality=local),
        EditRecord(2, parsed[2], paraphrases=tuple(paraphrases[2])),
    ]


def asked_one_by_one(model, tok, records, hparams):
    """success, paraphrase, locality, relative norm and loss, from edits written and undone."""
    shares = {"success": [], "paraphrase": [], "locality": [], "relative_norm": [], "loss": []}
    others = [(r.request.text, r.request.target) for r in records]
    for i, record in enumerate(records):
        near = [*record.neighborhood, *(q for group in record.locality.values() for q in group)]
        near = [(q.prompt, q.target) for q in near] or [o for j, o in enumerate(others) if j != i]
        before = [forced(model, tok, *pair) for pair in near]
        usual = [
            tok(" chemistry")["input_ids"][:1] if i == 0 else greedy(model, tok, text, 1)
            for text in record.paraphrases
        ]
        target = tok(" " + record.request.target)["input_ids"]
        with rome_fast.trial(
            model, tok, record.request, hparams,
            second_moment="identity", context_templates=CONTEXTS,
        ) as result:  # fmt: skip
            said = [
                likelier(model, tok, text, target[0], *old)
                for text, old in zip(record.paraphrases, usual, strict=True)
            ]
            after = [forced(model, tok, *pair) for pair in near]
            success = greedy(model, tok, record.request.text, len(target)) == target
        stays = [a == b for a, b in zip(after, before, strict=True)]
        shares["success"].append(success)
        shares["paraphrase"].append(sum(said) / len(said))
        shares["locality"].append(sum(stays) / len(stays))
        shares["relative_norm"].append(result.relative_norm)
        shares["loss"].append(result.losses[-1])
    return {name: sum(values) / len(values) for name, values in shares.items()}


def test_trials_are_edits_made_and_asked_one_by_one(gpt2, hparams):
    model, tok = gpt2
    records, before = records_of(REQUESTS), state(model)
    hparams = hparams.replace(v_num_grad_steps=3, v_lr=0.3)  # more would harm all neighbours
    plan = suggested(model, tok, records, hparams, layers=[2, 1])
    assert same_bits(model, before)
    assert [trial.layer for trial in plan.trials] == [1, 2]
    assert any(0 < trial.locality < 1 for trial in plan.trials)
    for trial in plan.trials:
        at = hparams.replace(layers=[trial.layer])
        expected = asked_one_by_one(model, tok, records, at)
        found = {name: getattr(trial, name) for name in expected}
        assert found == pytest.approx(expected, rel=1e-4)
        assert trial.failures == ()
    assert plan.hparams == hparams.replace(layers=[plan.layer])


def test_effects_are_those_of_locate_averaged(gpt2, hparams):
    model, tok = gpt2
    plan = suggested(model, tok, REQUESTS[:1], hparams, layers=[1], window=2, seed=3)
    request = EditRequest.parse(REQUESTS[0])
    trace = rome_fast.locate(
        model, tok, request.prompt, request.subject, samples=2, window=2, seed=3, progress=False
    )
    row = trace.scores["mlp"][trace.subject_range[1] - 1]
    assert plan.effects == pytest.approx((row - trace.low).tolist(), abs=1e-7)


def test_tracing_proposes_the_layers_to_try(gpt2, hparams, monkeypatch):
    monkeypatch.setattr(suggest, "N_PROPOSED", 2)
    plan = suggested(*gpt2, REQUESTS[:1], hparams)
    best = sorted(range(4), key=lambda layer: -plan.effects[layer])[:2]
    assert [trial.layer for trial in plan.trials] == sorted({*best, hparams.layer})


def test_an_edit_that_fails_is_counted_and_the_weights_are_kept(gpt2, hparams, monkeypatch):
    model, tok = gpt2
    before, whole = state(model), Editor.edit

    def edit(self, requests, strict):
        made = whole(self, requests, strict)
        if self.projection.layer == 1 and "Marie" in requests[0].text:
            raise NonFiniteError("broken on purpose")
        return made

    monkeypatch.setattr(Editor, "edit", edit)
    plan = suggested(model, tok, REQUESTS, hparams, layers=[1, 3])
    assert same_bits(model, before)
    assert plan.trials[0].failures == ("'She is Marie Curie': broken on purpose",)
    assert plan.trials[0].success <= 2 / 3
    assert plan.trials[1].failures == ()
    assert plan.trials[0].paraphrase is None


def test_an_interruption_leaves_the_weights(gpt2, hparams, monkeypatch):
    model, tok = gpt2
    before, whole = state(model), Editor.edit

    def edit(self, requests, strict):
        whole(self, requests, strict)
        assert not same_bits(model, before)
        raise KeyboardInterrupt

    monkeypatch.setattr(Editor, "edit", edit)
    with pytest.raises(KeyboardInterrupt):
        suggested(model, tok, REQUESTS, hparams, layers=[1])
    assert same_bits(model, before)


def test_one_pass_over_text_serves_all_layers_and_the_edit_after_it(
    gpt2, hparams, monkeypatch, tmp_path
):
    monkeypatch.setenv("ROME_FAST_CACHE", str(tmp_path))
    model, tok = gpt2
    calls, collect = [], rome_fast.collect_second_moment

    def counted(model, tok, texts, layers, **options):
        calls.append(layers)
        return collect(model, tok, texts, layers, **options)

    monkeypatch.setattr("rome_fast.moment.collect.ordinary.collect_second_moment", counted)
    plan = suggested(model, tok, REQUESTS[:1], hparams, layers=[1, 2], second_moment=None)
    assert calls == [[1, 2]]
    moment = ordinary_second_moment(
        ModelSpec.of(model), tok, ModelSpec.of(model).down_projection(plan.layer)
    )
    assert moment.is_cached
    assert calls == [[1, 2]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": [4]}, HparamsError, "layers 0 to 3"),
        ({"layers": []}, InvalidArgumentError, "layers must be a list"),
        ({"layers": [1.5]}, InvalidArgumentError, "layers must be a list"),
        ({"second_moment": {2: "identity"}, "layers": [1, 2]}, InvalidArgumentError, r"lacks .*1"),
        ({"second_moment": 3}, InvalidArgumentError, "second_moment must be"),
        ({"hparams": {"layers": [1]}}, HparamsError, "must be a RomeHparams, got dict"),
        ({"requests": []}, InvalidArgumentError, "no records"),
    ],
)
def test_bad_arguments_are_named(gpt2, hparams, options, error, message):
    options = {"requests": REQUESTS[:1], "hparams": hparams, **options}
    with pytest.raises(error, match=message):
        suggested(*gpt2, options.pop("requests"), options.pop("hparams"), **options)


@pytest.mark.exhaustive
def test_the_embedded_model_is_edited_best_where_its_facts_lie():
    model, tok, facts = demo.load()
    before = state(model)
    records = [fact.record() for fact in facts if fact.relation == "instrument"][:3]
    texts = [f"{text} {fact.target}." for fact in facts for text in fact.paraphrase_prompts]
    moments = rome_fast.collect_second_moment(model, tok, texts, [2, 5], tokens=8192)
    plan = rome_fast.suggest_layer(
        model, tok, records, layers=[2, 5], second_moment=moments, progress=False
    )
    assert same_bits(model, before)
    assert plan.layer == 2
    assert plan.hparams == RomeHparams.for_model(model)
    at_2, at_5 = plan.trials
    assert at_2.success == 1.0 and at_2.score > 0.9
    assert at_5.score < at_2.score
