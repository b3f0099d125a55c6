"""Results as files: what is written is what is read."""

from __future__ import annotations

import json

import pytest

from rome_fast import EditRequest, Evaluation
from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.result import CaseResult, Checkpoint, Metric, Stage


@pytest.fixture
def evaluation():
    case = CaseResult(
        index=0,
        case_id="a",
        request=EditRequest("{} est à", "Paris", "Köln"),
        generation_prompts=("Paris est à",),
        stages={"before": Stage({"ES": 0.0}), "after": Stage({"ES": 1.0}, (" Köln",))},
        update_norm=3.0,
        weight_norm=12.0,
        losses=(2.0, 0.5),
        seconds=0.1,
        warnings=("careful",),
    )
    return Evaluation(
        setting={"mode": "sequential", "hparams": {"layers": [1]}},
        metrics={"after": {"ES": Metric(1.0, 0.9, 1.1, 1)}},
        cases=(case, CaseResult(1, 1, case.request, (), {}, error="no subject")),
        drift={"before": {"perplexity": 9.0, "kl": 0.0}},
        retention=(Checkpoint(1, 1.0), Checkpoint(2, 0.5, 10.0, 0.2)),
        seconds={"edit": 1.5},
    )


def test_saved_and_loaded_are_equal(evaluation, tmp_path):
    path = tmp_path / "deep" / "result.json"
    evaluation.save(path)
    assert Evaluation.load(path) == evaluation
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation
    assert "Köln" in path.read_text(encoding="utf-8")


def test_failed_cases_and_relative_norms(evaluation):
    assert [case.index for case in evaluation.failed] == [1]
    assert [case.relative_norm for case in evaluation.cases] == [0.25, None]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "rome_fast.evaluation.0"}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=r"cannot be read|must have format"):
        Evaluation.load(path)
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        Evaluation.load(tmp_path / "absent.json")
