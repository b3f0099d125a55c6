"""The gate against its formula, in float64 on random data."""

from __future__ import annotations

import pytest
import torch

from rome_fast import SecondMoment
from rome_fast.beside.entry import Entry
from rome_fast.beside.gate import _CONTEXTS, _LEAST, _MORE, _TOLD, NEAR, gate_rows
from rome_fast.beside.group import Subject
from rome_fast.types import Signature

D, SUBJECTS = 16, 5


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def entry():
    moment = SecondMoment(D + 1)
    h = drawn(0, 400, D) * torch.linspace(0.2, 2.0, D, dtype=torch.float64)
    moment.add(torch.cat([h, h.new_ones(len(h), 1)], 1))
    return Entry.of(moment, h[:50])


@pytest.fixture
def subjects():
    """The contexts of the last are far apart."""
    found = []
    for i in range(SUBJECTS):
        own = drawn(10 + i, D) + drawn(20 + i, 6, D) * (0.1 if i < SUBJECTS - 1 else 2.5)
        apart = drawn(30 + i, D)
        apart /= apart @ own.mean(0)
        signature = Signature(own.float(), apart.float())
        found.append(Subject(str(i), (signature,), drawn(40 + i, 3), frozenset([i])))
    return found


def test_it_opens_where_the_formula_says(entry, subjects):
    rows = gate_rows(entry, subjects)
    owns = [subject.own for subject in subjects]
    scatter = [row - own.mean(0) for own in owns for row in own]
    mean_scatter = sum(torch.outer(d, d) for d in scatter) / len(scatter)
    metric = torch.linalg.inv(entry.moment.double() + _CONTEXTS * mean_scatter)

    def cosine(a, b):
        return (a @ metric @ b) / ((a @ metric @ a) * (b @ metric @ b)).sqrt()

    opened = 0
    near = torch.stack([owns[i % SUBJECTS].mean(0) for i in range(200)])
    for h in near + drawn(2, 200, D) * torch.linspace(0, 0.6, 200, dtype=torch.float64)[:, None]:
        cosines = torch.stack([cosine(h, own.mean(0)) for own in owns])
        best = int(cosines.argmax())
        least = min(float(cosine(row, owns[best].mean(0))) for row in owns[best])
        limit = min(max(least - _MORE, _LEAST), NEAR)
        told = float(h @ subjects[best].apart) - _TOLD
        if min(abs(float(cosines[best]) - limit), abs(told)) < 1e-4:
            continue
        is_open = bool(cosines[best] > limit) and told > 0
        expected = subjects[best].delta if is_open else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(rows.answer(h.float()).double(), expected, rtol=1e-5, atol=1e-6)
        opened += is_open
    assert 40 < opened < 190


def test_a_subject_that_varies_has_a_wider_gate(entry, subjects):
    near = gate_rows(entry, subjects).near
    owns = [subject.own for subject in subjects]
    turned = owns[-1] - 1.5 * owns[-1].mean(0) * torch.tensor([[1.0]] + [[0.0]] * 5).double()
    wide = Subject("wide", (Signature(turned.float(), subjects[-1].apart.float()),),
                   subjects[-1].delta, subjects[-1].edits)  # fmt: skip
    wider = gate_rows(entry, [*subjects[:-1], wide]).near
    assert float(wider[-1]) < float(near[-1]) <= NEAR + 1e-6
    assert float(wider[-1]) >= _LEAST - 1e-6


def test_many_subjects_close_no_gate(entry, subjects):
    """What a subject's gate answers to depends on the others' contexts only by their mean."""
    crowd = []
    for i in range(300):
        own = drawn(100 + i, D) + drawn(500 + i, 6, D) * 0.1
        apart = own.mean(0) / (own.mean(0) @ own.mean(0))
        signature = Signature(own.float(), apart.float())
        crowd.append(Subject(f"other {i}", (signature,), torch.zeros(3), frozenset([i + 10])))
    rows = gate_rows(entry, [*subjects, *crowd])
    for i, subject in enumerate(subjects):
        number, is_subject = rows.nearest(subject.own.mean(0).float())
        assert (int(number), bool(is_subject)) == (i, True)
