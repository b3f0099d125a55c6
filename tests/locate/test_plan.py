"""What a Plan recommends, from hand-made trials, and what it writes."""

from __future__ import annotations

import dataclasses
import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from rome_fast import RomeHparams
from rome_fast.locate import LayerTrial, Plan
from rome_fast.locate.plan import best_of
from rome_fast.locate.reasons import reasons_for


def trial(layer, success=1.0, paraphrase=1.0, locality=1.0, norm=0.01, n_requests=100, **others):
    fields = {"loss": 0.04, "unconverged": 0, "failures": (), **others}
    return LayerTrial(layer, n_requests, success, paraphrase, locality, norm, **fields)


def reasons(trials, effects, n=20, own_neighbors=True):
    asked = SimpleNamespace(records=[None] * n, own_neighbors=own_neighbors)
    return list(reasons_for(best_of(trials), trials, effects, asked))


def test_score_is_the_harmonic_mean_of_what_was_measured():
    assert trial(0, 1.0, 0.5, 0.25).score == pytest.approx(3 / (1 + 2 + 4))
    assert trial(0, 1.0, None, 0.5).score == pytest.approx(2 / 3)
    assert trial(0, 0.7, None, None).score == pytest.approx(0.7)
    assert trial(0, 0.0).score == 0.0


@pytest.mark.parametrize(
    ("trials", "layer"),
    [
        ([trial(0, success=0.9), trial(1)], 1),  # the score
        ([trial(0, norm=0.02), trial(1, norm=0.01), trial(2, norm=0.03)], 1),  # a tie: the norm
        ([trial(0, norm=0.02), trial(1, success=0.995), trial(2, norm=0.03)], 1),  # within a point
        ([trial(0, norm=0.02), trial(1, success=0.9)], 0),  # not within a point
        ([trial(0), trial(1)], 0),  # all alike: the lowest
        ([trial(0, locality=0.0), trial(1, 0.5, locality=0.0, norm=0.001)], 0),  # no score at all
        ([trial(0, 0, None, None, None), trial(1, 0, norm=0.5)], 1),  # one that edits at all
    ],
)
def test_best(trials, layer):
    assert best_of(trials).layer == layer
    assert best_of(trials[::-1]).layer == layer


@pytest.mark.parametrize(("n", "layer"), [(100, 0), (20, 1), (2, 1)])
def test_a_tie_is_as_wide_as_a_request_and_at_most_a_tenth(n, layer):
    near = [trial(0, n_requests=n, norm=0.02), trial(1, success=0.9, n_requests=n, norm=0.01)]
    assert best_of(near).layer == layer
    far = [trial(0, n_requests=n, norm=0.02), trial(1, success=0.5, n_requests=n, norm=0.01)]
    assert best_of(far).layer == 0


def test_reasons_in_words():
    trials = [trial(1, 0.8, 0.5, norm=0.02, unconverged=3, loss=0.7), trial(2, 0.4)]
    told = reasons(trials, [0.0, 0.3, 0.1, -0.1])
    assert told[0] == "layer 1: success 80%, paraphrases 50%, locality 100% of 20 trial edits"
    assert told[1] == "next best is layer 2 with success 40%, paraphrases 100%, locality 100%"
    assert told[2] == "tracing agrees: restored MLPs around layer 1 bring back most (+0.300)"
    assert "even layer 1 edits only 80%" in told[3]
    assert "did not converge in 3 of the 20 edits of layer 1 (mean loss 0.70)" in told[4]
    assert len(told) == 5


def test_reasons_name_ties_disagreement_and_what_was_not_measured():
    trials = [trial(0, paraphrase=None, norm=0.03), trial(2, paraphrase=None, failures=["x: no"])]
    told = reasons(trials, [0.3, 0.2, 0.1], n=4, own_neighbors=False)
    assert told[0] == "layer 2: success 100%, locality 100% of 4 trial edits"
    assert told[1].startswith("as good within one request: layer 0; but in layer 2 the updates are")
    assert "(1.00% of the weight's norm)" in told[1]
    assert told[2] == (
        "tracing points elsewhere: restored MLPs around layer 0 bring back most (+0.300), around "
        "layer 2 +0.100"
    )
    assert told[3] == "no update was made for x: no"
    assert [text.split()[0] for text in told[4:]] == ["locality", "the", "4"]


@pytest.fixture
def plan():
    return Plan(
        trials=(trial(1), trial(2, success=0.5, paraphrase=None, norm=None, loss=None)),
        effects=(0.1, 0.25, -0.0125),
        hparams=RomeHparams(layers=[1], context_template_length_params=[[5, 2]], v_lr=0.25),
        reasons=("because [it] is",),
        settings={"samples": 10},
    )


def test_hparams_are_read_as_they_were_written(plan, tmp_path):
    plan.hparams.save(tmp_path / "plan.yaml")
    assert RomeHparams.from_file(tmp_path / "plan.yaml") == plan.hparams
    odd = plan.hparams.replace(v_weight_decay=1e-9, variant="original", mom2_adjustment=False)
    odd.save(tmp_path / "odd.yaml")
    assert RomeHparams.from_file(tmp_path / "odd.yaml") == odd


def test_json_holds_everything(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    read = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert read["layer"] == 1
    assert read["trials"][0] == {**dataclasses.asdict(trial(1)), "failures": [], "score": 1.0}
    assert read["effects"] == [0.1, 0.25, -0.0125]
    assert read["hparams"]["context_template_length_params"] == [[5, 2]]
    assert read["settings"] == {"samples": 10}


def test_text(plan):
    lines = str(plan).splitlines()
    chosen = next(line for line in lines if line.strip().startswith("> 1"))
    assert chosen.split() == [*"> 1 +0.250 100% 100% 100% 100% 1.00% 0.040".split()]
    other = next(line for line in lines if line.strip().startswith("2 "))
    assert other.split() == [*"2 -0.013 50% - 100% 67% - -".split()]
    assert lines[-1].strip() == "- because [it] is"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_is_cut_at_any_width(plan, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(plan)
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert all(word in text for word in ("> 1", "+0.250", "paraphr.", "1.00%", "0.040"))
