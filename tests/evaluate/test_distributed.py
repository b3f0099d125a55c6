"""Two processes share the records; both have the whole result, which is that of one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from processes import run_two
from tiny import tiny_gpt2

import rome_fast
from rome_fast import Evaluation

HERE = Path(__file__)

# What both the test and its processes run.
SETTINGS = {
    "hparams": rome_fast.RomeHparams(layers=[1], v_num_grad_steps=4, v_lr=0.3),
    "second_moment": "identity",
    "context_templates": ["{}", "He is a man. {}"],
    "generate_tokens": 2,
    "window": 2,
    "progress": False,
}
SUBJECTS = ["Steve Jobs", "Ada Lovelace", "Eiffel Tower", "Marie Curie", "LeBron James"]
RECORDS = [{"prompt": "It is {}", "subject": s, "target_new": "river"} for s in SUBJECTS]


def process(folder):
    """What torchrun starts."""
    from torch import distributed

    from rome_fast.moment.collect.ranks import torchrun_group

    with torchrun_group():
        model, tok = tiny_gpt2()
        rank, resume = distributed.get_rank(), f"{folder}/journal.jsonl"
        found = rome_fast.evaluate(model, tok, RECORDS, distributed=True, resume=resume, **SETTINGS)
        found.save(f"{folder}/{rank}.json")
        differing = RECORDS[: 4 + rank]
        try:
            rome_fast.evaluate(model, tok, differing, distributed=True, **SETTINGS)
        except rome_fast.errors.InvalidArgumentError as error:
            Path(f"{folder}/{rank}.txt").write_text(str(error))


@pytest.mark.exhaustive
def test_two_processes_find_what_one_does(tmp_path):
    run_two(HERE, tmp_path)
    model, tok = tiny_gpt2()
    alone = rome_fast.evaluate(model, tok, RECORDS, **SETTINGS)
    first, second = (Evaluation.load(tmp_path / f"{rank}.json") for rank in (0, 1))
    assert (first.cases, first.metrics) == (second.cases, second.metrics)
    assert first.setting == {**alone.setting, "processes": 2}
    assert [case.index for case in first.cases] == [0, 1, 2, 3, 4]
    for case, expected in zip(first.cases, alone.cases, strict=True):
        assert case.request == expected.request
        values = expected.stages["after"].values
        assert case.stages["after"].values == pytest.approx(values, rel=1e-4)
    for rank, indices in ((0, [0, 2, 4]), (1, [1, 3])):
        lines = (tmp_path / f"journal.jsonl.rank{rank}of2").read_text().splitlines()
        kept = [json.loads(line) for line in lines[1:]]
        assert [line["index"] for line in kept if "stage" not in line] == indices
        assert [line["index"] for line in kept if "stage" in line] == indices
        assert "different models, records or arguments" in (tmp_path / f"{rank}.txt").read_text()


if __name__ == "__main__":
    process(sys.argv[1])
