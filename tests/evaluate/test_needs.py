"""Records without what a protocol compares with are named."""

from __future__ import annotations

import dataclasses

import pytest

import rome_fast
from rome_fast import EditRecord, EditRequest
from rome_fast.errors import RecordWarning
from rome_fast.evaluate.needs import lacking

WITH = EditRecord("a", EditRequest("{} is in", "Paris", "Rome"), "France")
WITHOUT = dataclasses.replace(WITH, case_id="b", target_true=None)
TOLD = "protocol 'rome': ES, PS, EM and PM compare with the true target, which "


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([WITH], []),
        ([WITH, WITHOUT], [TOLD + "1 of 2 records lack: case_id b"]),
        (
            [WITH, dataclasses.replace(WITH, also=(WITHOUT,))],
            [TOLD + "1 of 2 records lack: case_id a"],
        ),
        (
            [WITH, *[WITHOUT] * 12],
            [TOLD + f"12 of 13 records lack: case_id {'b, ' * 9}b and 2 more"],
        ),
        (
            [WITHOUT] * 2,
            [TOLD + "none of the 2 records has: they are not measured; the others need none"],
        ),
    ],
)
def test_who_lacks_a_true_target_is_said(records, told):
    assert lacking(("wild", "rome"), records) == told
    assert lacking(("easyedit", "strict", "wild"), records) == []


def test_an_evaluation_says_it_and_keeps_it():
    model, tok, facts = rome_fast.demo.load()
    records = [facts[0].record(), dataclasses.replace(facts[1].record(), target_true=None)]
    note = f"{TOLD}1 of 2 records lack: case_id {records[1].case_id}"
    with pytest.warns(RecordWarning) as seen:
        found = rome_fast.evaluate(
            *(model, tok, records),
            hparams=rome_fast.RomeHparams(layers=[1], v_num_grad_steps=1),
            second_moment="identity",
            context_templates=["{}"],
            generate_tokens=0,
            progress=False,
        )
    assert note in [str(w.message) for w in seen] and note in found.setting["notes"]
    assert found.metrics["after"]["ES"].n == 1
