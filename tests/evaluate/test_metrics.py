"""Every metric on scores whose values can be worked out by hand."""

from __future__ import annotations

import math

import pytest

from rome_fast import EditRequest
from rome_fast.evaluate.metrics import (
    case_values,
    changes,
    mean_metric,
    questions_of,
    score_metric,
    summarise,
    unchanged,
)
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.evaluate.result import CaseResult, Stage
from rome_fast.evaluate.scoring import Score

REQUEST = EditRequest("{} plays the", "Ray Charles", "violin")


def said(*probabilities, target=(1,), argmax=None):
    """A score with the given probability of each token of the answer."""
    target = target * len(probabilities) if len(target) == 1 else target
    logs = tuple(math.log(p) for p in probabilities)
    return Score(target, logs, target if argmax is None else argmax)


def test_questions_of_a_record():
    record = EditRecord(
        7,
        REQUEST,
        target_true="piano",
        paraphrases=("Listen: Ray Charles on the",),
        neighborhood=(Question("Elton John plays the", "piano"),),
        locality={"trivia": (Question("Rome lies in", "Italy"),)},
        portability={"hop": (Question("Ray Charles tunes his", "violin"),)},
    )
    assert questions_of(record) == {
        "rewrite_new": [Question("Ray Charles plays the", "violin")],
        "rephrase_new": [Question("Listen: Ray Charles on the", "violin")],
        "rewrite_true": [Question("Ray Charles plays the", "piano")],
        "rephrase_true": [Question("Listen: Ray Charles on the", "piano")],
        "neighborhood_true": [Question("Elton John plays the", "piano")],
        "neighborhood_new": [Question("Elton John plays the", "violin")],
        "locality.trivia": [Question("Rome lies in", "Italy")],
        "portability.hop": [Question("Ray Charles tunes his", "violin")],
    }
    assert list(questions_of(EditRecord(0, REQUEST))) == ["rewrite_new"]


def test_both_objects_stand_behind_the_edited_prompt_as_the_request_says():
    request = EditRequest("{} plays the", "Ray Charles", "violin", space=False)
    asked = questions_of(EditRecord(7, request, "piano", ("Ray Charles on the",)))
    both = [*asked["rewrite_new"], *asked["rewrite_true"]]
    assert [(q.target, q.space) for q in both] == [("violin", False), ("piano", False)]
    # Another prompt may end otherwise.
    assert [q.space for q in asked["rephrase_new"]] == [None]


def test_efficacy():
    # The new target's tokens have probabilities 1/2 and 1/8: 1/4 a token (geometric), 1/16 in all.
    scores = {
        "rewrite_new": [said(0.5, 0.125, target=(5, 6), argmax=(5, 9))],
        "rewrite_true": [said(0.2, target=(8,), argmax=(5,))],
    }
    assert case_values(scores) == pytest.approx(
        {
            "rewrite_prob": 1 / 16,
            "ES": 1.0,  # 1/4 a token > 1/5
            "EM": 0.25 - 0.2,
            "rewrite_acc": 0.5,
            "rewrite_exact": 0.0,
        }
    )


def test_success_compares_nll_a_token_not_in_all():
    one = {"rewrite_true": [said(0.1, target=(8,))]}
    long = case_values({**one, "rewrite_new": [said(0.2, 0.2, 0.2)]})
    assert (long["ES"], long["rewrite_prob"]) == (1.0, pytest.approx(0.008))
    equal = case_values({**one, "rewrite_new": [said(0.1)]})
    assert (equal["ES"], equal["EM"]) == (0.0, 0.0)  # as likely is not likelier


def test_paraphrases_are_averaged_within_the_case():
    scores = {
        "rewrite_new": [said(0.5)],
        "rephrase_new": [said(0.4), said(0.1, argmax=(3,))],
        "rephrase_true": [said(0.3, target=(2,)), said(0.4, target=(2,))],
    }
    values = case_values(scores)
    assert values["PS"] == 0.5
    assert values["PM"] == pytest.approx(((0.4 - 0.3) + (0.1 - 0.4)) / 2)
    assert (values["rephrase_acc"], values["rephrase_exact"]) == (0.5, 0.5)
    assert not {"ES", "EM", "NS"} & values.keys()  # no true target, no neighbours


def test_neighbours_should_still_be_answered_as_they_were():
    true = [said(0.6, target=(2,)), said(0.2, target=(3,), argmax=(1,)), said(0.5)]
    new = [said(0.1), said(0.3), said(0.5)]  # the last one's answer is the new target itself
    before = [said(0.7, target=(2,)), said(0.7, target=(3,)), said(0.5, argmax=(4,))]
    rewrite = {"rewrite_new": [said(0.5)]}
    asked = {**rewrite, "neighborhood_true": true, "neighborhood_new": new}
    values = case_values(asked, {**rewrite, "neighborhood_true": before})
    assert values["NS"] == 0.5  # of two, not of three
    assert values["NM"] == pytest.approx(((0.6 - 0.1) + (0.2 - 0.3)) / 2)
    assert values["neighborhood_acc"] == pytest.approx(2 / 3)
    assert values["neighborhood_unchanged"] == pytest.approx(1 / 3)
    only = {**rewrite, "neighborhood_true": [said(0.5)], "neighborhood_new": [said(0.5)]}
    assert not {"NS", "NM"} & case_values(only).keys()


def test_locality_is_against_before_and_portability_against_the_answer():
    scores = {
        "rewrite_new": [said(0.5)],
        "locality.trivia": [said(0.1, 0.1, target=(1, 2), argmax=(7, 8)), said(0.1)],
        "portability.hop": [said(0.1, 0.1, target=(1, 2), argmax=(1, 8))],
    }
    before = {
        **scores,
        "locality.trivia": [said(0.1, 0.1, target=(1, 2), argmax=(7, 2)), said(0.1)],
    }
    values = case_values(scores, before)
    assert values["locality.trivia"] == (0.5 + 1) / 2
    assert values["portability.hop"] == 0.5
    assert "locality.trivia" not in case_values(scores)  # before the edit it means nothing
    assert unchanged(scores["locality.trivia"], scores["locality.trivia"]) == 1


def test_mean_and_its_interval():
    metric = mean_metric([0.0, 1.0, 1.0, 1.0])
    # Standard deviation 1/2, standard error 1/4.
    assert metric.mean == 0.75 and metric.n == 4
    assert (metric.low, metric.high) == pytest.approx((0.75 - 0.49, 0.75 + 0.49))
    alone = mean_metric([0.3])
    assert (alone.low, alone.mean, alone.high, alone.n) == (0.3, 0.3, 0.3, 1)


def test_score_is_a_harmonic_mean_of_means():
    metric = score_metric([[1, 0.5, 0.25], [1, 0.5, 0.75]])
    assert metric.mean == pytest.approx(3 / (1 / 1 + 1 / 0.5 + 1 / 0.5))
    # Leaving one out: 3 / (1 + 2 + 4/3) and 3 / (1 + 2 + 4); two values' jackknife error is half
    # of their distance.
    error = abs(3 / (3 + 4 / 3) - 3 / 7) / 2
    assert metric.high - metric.mean == pytest.approx(1.96 * error)
    assert score_metric([[1, 0, 1], [1, 0, 1]]).mean == 0


def test_jackknife_of_three_equal_columns_is_the_interval_of_the_mean():
    values = [0.2, 0.9, 0.4, 0.5]
    score, mean = score_metric([[x, x, x] for x in values]), mean_metric(values)
    assert (score.mean, score.low, score.high) == pytest.approx((mean.mean, mean.low, mean.high))


def test_score_of_cases_that_lack_a_value():
    metric = score_metric([[1, 0.5, math.nan], [0, 0.5, 1], [1, 0.5, math.nan]])
    assert metric.mean == pytest.approx(3 / (1.5 + 2 + 1))
    assert metric.low == metric.high == metric.mean  # nothing is known of the spread of one value


def test_summary_over_cases():
    def case(index, **values):
        stages = {"before": Stage({"ES": 0.0}), "after": Stage(values)} if values else {}
        return CaseResult(index, index, REQUEST, ("x",), stages)

    full = [case(0, ES=1.0, PS=1.0, NS=1.0), case(1, ES=0.0, PS=1.0), case(2)]
    metrics = summarise(full)
    # The third was not asked: a failure, but for its neighbours, of which nothing is known.
    assert metrics["before"]["ES"].n == metrics["after"]["ES"].n == 3
    assert metrics["after"]["ES"].mean == pytest.approx(1 / 3)
    assert metrics["after"]["NS"].mean == metrics["after"]["NS"].n == 1
    assert metrics["after"]["S"].mean == pytest.approx(3 / (3 + 3 / 2 + 1))
    assert "S" not in metrics["before"]
    with_skipped = summarise(full, n_skipped=1)["after"]
    assert (with_skipped["ES"].mean, with_skipped["ES"].n) == (0.25, 4)
    assert with_skipped["NS"] == metrics["after"]["NS"]


def test_changes_are_paired_and_what_was_not_asked_changes_nothing():
    def case(index, before, after):
        stages = {"before": Stage(before), "after": Stage(after)} if before else {}
        return CaseResult(index, index, REQUEST, ("x",), stages)

    cases = [
        case(0, {"ES": 0.0, "NS": 1.0}, {"ES": 1.0, "NS": 0.5, "neighborhood_unchanged": 0.5}),
        case(1, {"ES": 1.0, "NS": 0.5}, {"ES": 1.0, "NS": 0.5}),
        case(2, {}, {}),
    ]
    found = changes(cases, n_skipped=1)
    assert found.keys() == {"ES", "NS"}  # what is against before has none
    assert found["ES"] == mean_metric([1.0, 0.0, 0.0, 0.0])
    assert found["NS"] == mean_metric([-0.5, 0.0])


def test_the_change_of_the_score_is_a_jackknife_of_the_difference():
    before, after = [[0.25, 0.5, 1], [0.5, 0.5, 1]], [[1, 0.5, 1], [1, 1, 0.5]]
    cases = [
        CaseResult(
            *(i, i, REQUEST, ("x",)),
            {
                name: Stage(dict(zip(("ES", "PS", "NS"), row, strict=True)))
                for name, row in (("before", a), ("after", b))
            },
        )
        for i, (a, b) in enumerate(zip(before, after, strict=True))
    ]
    found = changes(cases)["S"]
    metrics = summarise(cases)
    assert found.mean == pytest.approx(metrics["after"]["S"].mean - metrics["before"]["S"].mean)

    def alone(row):
        return 3 / sum(1 / x for x in row)

    left = [alone(b) - alone(a) for a, b in zip(before, after, strict=True)]
    assert found.high - found.mean == pytest.approx(1.96 * abs(left[0] - left[1]) / 2)
