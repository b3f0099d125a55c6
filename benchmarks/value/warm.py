"""Where a search for v* may start, when other values are known.

A start is made of earlier edits' offsets (each fact's own is never among them), or of what the
edited matrix writes for another subject of which the target is true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.real_model.records import read_counterfact
from rome_fast.model.open_model import open_model
from rome_fast.prompt.encode import encode
from rome_fast.types import EditRequest
from rome_fast.value.batch import EditBatch
from rome_fast.value.first_pass import run_first_pass

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.value.study import Study

Starts = list["Tensor | None"]


def same_target(study: Study, rows: Sequence[dict[str, Any]]) -> Starts:
    """The mean offset of other facts that were given this target."""
    return _mean_of_others(rows, [record.request.target for record in study.records])


def same_relation(study: Study, rows: Sequence[dict[str, Any]]) -> Starts:
    """The mean offset of other facts of the relation, whatever their target."""
    return _mean_of_others(rows, _relations(study))


def ridge(study: Study, rows: Sequence[dict[str, Any]], damping: float = 10.0) -> Starts:
    """A ridge regression on the target's embedding and the value; fitted on the other half."""
    head = study.model.get_output_embeddings().weight.detach()
    targets = torch.stack([head[_first_token(study, i)] for i in range(len(rows))])
    values = torch.stack([row["keys"]["value_init"] for row in rows])
    x = torch.cat([_standard(targets), _standard(values), torch.ones(len(rows), 1)], dim=1)
    y = torch.stack([row["delta"] for row in rows])
    starts: Starts = [None] * len(rows)
    half = torch.arange(len(rows)) % 2
    for part in (0, 1):
        fit, held = half != part, half == part
        gram = x[fit] @ x[fit].T
        gram.diagonal().add_(damping * float(gram.diagonal().mean()) / 10)
        predicted = x[held] @ (x[fit].T @ torch.linalg.solve(gram, y[fit]))
        for i, start in zip(held.nonzero().flatten().tolist(), predicted, strict=True):
            starts[i] = start
    return starts


def other_subject(study: Study, rows: Sequence[dict[str, Any]]) -> Starts:
    """What the matrix writes for a subject of which the target is true, in the same relation."""
    known: dict[tuple[str, str], EditRequest] = {}
    for raw in read_counterfact():
        fact = raw["requested_rewrite"]
        true = fact["target_true"]["str"]
        request = EditRequest(fact["prompt"], fact["subject"], true)
        known.setdefault((fact["relation_id"], true), request)
    starts: Starts = []
    with open_model(study.model) as spec:
        for record, relation, row in zip(study.records, _relations(study), rows, strict=True):
            other = known.get((relation, record.request.target))
            if other is None:
                starts.append(None)
                continue
            edit = encode(study.tok, other, ["{}"], study.hparams.fact_token)
            first = run_first_pass(spec, study.projection, EditBatch.of([edit]))
            starts.append(first.values[0] - row["keys"]["value_init"])
    return starts


STARTS: dict[str, Callable[..., Starts]] = {
    "same target": same_target,
    "same relation": same_relation,
    "ridge": ridge,
    "other subject": other_subject,
}


def _mean_of_others(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> Starts:
    starts: Starts = []
    for i, label in enumerate(labels):
        others = [rows[j]["delta"] for j, its in enumerate(labels) if its == label and j != i]
        starts.append(torch.stack(others).mean(0) if others else None)
    return starts


def _relations(study: Study) -> list[str]:
    of_case = {r["case_id"]: r["requested_rewrite"]["relation_id"] for r in read_counterfact()}
    return [of_case[record.case_id] for record in study.records]


def _first_token(study: Study, i: int) -> int:
    record = study.records[i]
    edit = encode(study.tok, record.request, ["{}"], study.hparams.fact_token)
    return int(edit.target_ids[0])


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std() / x.shape[1] ** 0.5
