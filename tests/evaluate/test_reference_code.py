"""Figures beside the authors' own evaluation code, on the embedded model as it comes.

Their code is looked for in ROME_FAST_PEER_KMENG01, ROME_FAST_PEER_EASYEDIT and ROME_FAST_PEER_WILD,
each the folder of a checkout; tests that need one skip without it. Edited models are compared by
``benchmarks/evaluate/agreement.py``.
"""

from __future__ import annotations

import os
import sys

import pytest
from helpers import same_bits, state

import rome_fast
from benchmarks.evaluate.agreement import figures
from benchmarks.evaluate.answers_compared import Answers, easyedit_rows, kmeng01_rows, wild_rows
from benchmarks.evaluate.reference_code import load_code
from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.evaluation import Evaluation
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.evaluate.result import Metric
from rome_fast.types import EditRequest

ALONE = Question("Pablo Casals plays the", "cello")
RECORD = EditRecord(
    case_id=7,
    request=EditRequest("{} plays the", "Ray Charles", "piano and the violin"),
    target_true="violin",
    paraphrases=("The instrument played by Ray Charles is the",),
    neighborhood=(Question("Yo-Yo Ma plays the", "violin"), Question("They play", "violin")),
    locality={"alone": (ALONE,)},
    portability={"alone": (Question("The instrument of Ray Charles is the", "violin"),)},
)


@pytest.fixture(scope="module")
def embedded():
    model, tok, _ = rome_fast.demo.load()
    return model, tok


def code_of(name):
    variable = f"ROME_FAST_PEER_{name.upper()}"
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set to a checkout of its code")
    return load_code(f"{name}={os.environ[variable]}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rome=x", "'rome=x' must be one of kmeng01=PATH, easyedit=PATH, wild=PATH"),
        ("kmeng01", "'kmeng01' must be one of"),
        ("kmeng01=/nowhere", "'/nowhere' is no checkout of kmeng01/rome, it lacks experiments/"),
        ("easyedit=/nowhere", "no checkout of zjunlp/EasyEdit"),
        ("wild=/nowhere", "no checkout of WanliYoung/Revisit-Editing-Evaluation"),
    ],
)
def test_what_is_no_checkout_is_named(spec, message):
    with pytest.raises(InvalidArgumentError, match=message):
        load_code(spec)


def test_figures_say_what_differs():
    row = {"code": "kmeng01", "stage": "after"}
    rows = [
        {**row, "kind": "ES", "theirs": 1.0, "ours": 1.0},
        {**row, "kind": "ES", "theirs": 0.0, "ours": 1.0},
        {**row, "kind": "NLL", "theirs": 2.0, "ours": 2.0001},
    ]
    metrics = {"after": {"ES": Metric(0.75, 0.5, 1.0, 2)}}
    evaluation = Evaluation(
        setting={}, metrics=metrics, cases=(), drift={}, retention=(), seconds={}
    )
    success, nll = figures(rows, evaluation)
    assert (success["theirs"], success["ours"], success["evaluate"]) == (0.5, 1.0, 0.75)
    assert (success["n"], success["differing"], success["largest"]) == (2, 1, 1.0)
    assert "theirs" not in nll and nll["differing"] == 0
    assert nll["largest"] == pytest.approx(1e-4)


def test_kmeng01_says_the_same(embedded):
    code, (model, tok) = code_of("kmeng01"), embedded
    before, pad = state(model), tok.pad_token
    rows = list(
        kmeng01_rows(
            code.counterfact(model, tok, RECORD),
            code.zsre(model, tok, RECORD),
            Answers(model, tok, RECORD, None),
        )
    )
    nlls = [row for row in rows if row["kind"] == "NLL"]
    # Both objects after the prompt, a paraphrase and two neighbours.
    assert len(nlls) == 8
    for row in rows:
        assert row["theirs"] == pytest.approx(row["ours"], abs=2e-5), row
    assert same_bits(model, before) and tok.pad_token == pad
    assert not {"experiments", "dsets", "nltk"} & set(sys.modules)


def test_easyedit_says_the_same(embedded):
    code, (model, tok) = code_of("easyedit"), embedded
    answers, theirs = Answers(model, tok, RECORD, None), code.quality(model, tok, RECORD)
    after = code.quality(model, tok, RECORD)
    code.add_locality(theirs, after, RECORD)
    rows = list(easyedit_rows(after, Answers(model, tok, RECORD, answers)))
    assert {row["kind"] for row in rows} >= {"accuracy", "greedy", "locality.alone", "rewrite_acc"}
    for row in rows:
        assert row["theirs"] == row["ours"], row
    # Some of the target's tokens are right, and not all: both would be seen.
    assert 0 < next(row["theirs"] for row in rows if row["kind"] == "rewrite_acc") < 1


def test_wild_says_the_same(embedded):
    code, (model, tok) = code_of("wild"), embedded
    rows = list(wild_rows(code, Answers(model, tok, RECORD, None)))
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["theirs"] == row["ours"], row
    assert code.is_same("The violin.", "violin") and not code.is_same("violins", "violin")
