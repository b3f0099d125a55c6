"""One edit by several implementations on one machine: agreement first, then time in turns.

A machine changes speed from one minute to the next. Every run of a peer therefore has a run of
rome_fast just before it, and the ratio of the two is reported.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast import ops
from rome_fast.bench.case import GIVEN, IDENTITY, Case
from rome_fast.bench.floor import Floor, gemm_rate
from rome_fast.bench.own import RomeFast
from rome_fast.bench.peak import peaks_in_children
from rome_fast.bench.peers import Peer, PeerEdit, load_peer
from rome_fast.errors import InvalidArgumentError, RomeFastError
from rome_fast.model.hashes import fingerprint
from rome_fast.model.spec import ModelSpec, input_device

if TYPE_CHECKING:
    from torch import Tensor

MATCHED_COSINE = 0.999


@dataclass(frozen=True)
class Row:
    """The time and memory of one implementation, and whether it made the same update.

    Attributes:
        seconds: of each edit.
        times_ours: seconds of each, divided by those of the rome_fast edit just before it.
        phases: median seconds by phase, as the implementation reports them.
        cosine, norm_ratio: of its dW to rome_fast's, (<a, b> / |a||b|, |a| / |b|).
        matched: cosine at least 0.999 and as many steps.
        peak_mib: memory beyond the model in a fresh process, None if it cannot be told.
    """

    name: str
    commit: str
    seconds: tuple[float, ...]
    times_ours: tuple[float, ...]
    phases: dict[str, float]
    n_steps: int
    cosine: float
    norm_ratio: float
    matched: bool
    peak_mib: int | None

    @property
    def median(self) -> float:
        """Seconds of an edit."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Comparison:
    """Rows of one edit with one C, rome_fast's first, and what the machine could do at best.

    Attributes:
        backend: of rome_fast's ops.
        steps_allowed: ``v_num_grad_steps``; rows with fewer stopped early.
        flops_per_s: measured, of a product of the loop's dominant shape.
    """

    c_mode: str
    backend: str
    steps_allowed: int
    floor: Floor
    flops_per_s: float
    rows: tuple[Row, ...]

    @property
    def floor_seconds(self) -> float:
        """What the edit's arithmetic takes at the measured rate."""
        return self.floor.seconds(self.flops_per_s)

    @property
    def stopped_early(self) -> bool:
        """Whether any search ended before its last step: its time is then no time per step."""
        return any(row.n_steps < self.steps_allowed for row in self.rows)

    def floor_fraction(self, row: Row) -> float:
        """Share of a row's seconds that the arithmetic needs."""
        return self.floor_seconds / row.median


def measure(case: Case, peers: Sequence[Peer | str] = (), *, rounds: int = 5) -> list[Comparison]:
    """Compare one edit of rome_fast with the peers', by result, time and memory.

    A case with a second moment is measured with it, and again with the identity for the peers
    that take none, or by default use none. The first edit of each is a warm-up; its result is the
    one that is compared.

    Args:
        peers: implementations, or specs for ``load_peer``.
        rounds: timed edits of each peer.

    Raises:
        InvalidArgumentError: ``rounds`` is less than 1, or a spec names no peer.
        RomeFastError: an implementation left the model changed.
    """
    if rounds < 1:
        raise InvalidArgumentError(f"rounds must be 1 or more, got {rounds}")
    loaded = [(peer, load_peer(peer) if isinstance(peer, str) else peer) for peer in peers]
    if case.second_moment is None:
        return [_compare(case, loaded, rounds)]
    comparisons = [_compare(case, [p for p in loaded if GIVEN in p[1].c_modes], rounds)]
    if plain := [p for p in loaded if IDENTITY in p[1].c_modes]:
        case = dataclasses.replace(case, second_moment=None)
        comparisons.append(_compare(case, plain, rounds))
    return comparisons


def _compare(case: Case, peers: list[tuple[Peer | str, Peer]], rounds: int) -> Comparison:
    ours = RomeFast()
    implementations = [ours, *(peer for _, peer in peers)]
    edits = _checked_edits(case, implementations)
    floor, rate = _floor_and_rate(case, len(edits[0].losses))
    runs, ratios = _in_turns(case, implementations, rounds)
    # The machine may have been slower at one end: the floor is what it does at its best.
    rate = max(rate, _floor_and_rate(case, len(edits[0].losses))[1])
    peaks = peaks_in_children(case, [ours, *(picklable for picklable, _ in peers)])
    rows = tuple(
        _row(implementation, edits[0], edits[i], runs[i], ratios[i], peaks[i])
        for i, implementation in enumerate(implementations)
    )
    backend = ops.resolve_backend("auto", input_device(case.model).type)
    steps = case.hparams.v_num_grad_steps
    return Comparison(case.c_mode, backend, steps, floor, rate, rows)


def _checked_edits(case: Case, implementations: list[Peer]) -> list[PeerEdit]:
    """One edit of each; every one must leave the model as it was."""
    edits, bits = [], fingerprint(*case.model.parameters())
    for implementation in implementations:
        edits.append(implementation.edit(case))
        if fingerprint(*case.model.parameters()) != bits:
            raise RomeFastError(
                f"peer {implementation.name!r} left the model's weights changed: what follows "
                "would measure another model; undo the edit in its adapter"
            )
    return edits


def _floor_and_rate(case: Case, n_steps: int) -> tuple[Floor, float]:
    floor = case.floor(n_steps)
    spec = ModelSpec.of(case.model)
    projection = spec.down_projection(case.hparams.layer)
    weight = projection.weight
    shape = floor.loop_tokens, spec.d_model, projection.d_key
    return floor, gemm_rate(*shape, weight.dtype, weight.device)


def _in_turns(
    case: Case, implementations: list[Peer], rounds: int
) -> tuple[list[list[PeerEdit]], list[list[float]]]:
    """Edits of each implementation, and each one's seconds over its neighbour's."""
    ours, *others = implementations
    runs: list[list[PeerEdit]] = [[] for _ in implementations]
    ratios: list[list[float]] = [[] for _ in implementations]
    for _ in range(rounds):
        for i, peer in enumerate(others, 1):
            runs[0].append(ours.edit(case))
            runs[i].append(peer.edit(case))
            ratios[i].append(_total(runs[i][-1]) / _total(runs[0][-1]))
        if not others:
            runs[0].append(ours.edit(case))
    return runs, ratios


def _row(
    implementation: Peer,
    ours: PeerEdit,
    edit: PeerEdit,
    runs: list[PeerEdit],
    ratios: list[float],
    peak: int | None,
) -> Row:
    cosine, norm_ratio = _agreement(edit.dense, ours.dense)
    same_steps = len(edit.losses) == len(ours.losses)
    phases = {
        phase: statistics.median(run.seconds[phase] for run in runs)
        for phase in runs[0].seconds
        if phase != "total"
    }
    return Row(
        name=implementation.name,
        commit=implementation.commit,
        seconds=tuple(map(_total, runs)),
        times_ours=tuple(ratios),
        phases=phases,
        n_steps=len(edit.losses),
        cosine=cosine,
        norm_ratio=norm_ratio,
        matched=same_steps and cosine >= MATCHED_COSINE,
        peak_mib=peak,
    )


def _agreement(one: Tensor, other: Tensor) -> tuple[float, float]:
    """(cosine, norm ratio) of two matrices of one shape."""
    a, b = one.double().flatten().cpu(), other.double().flatten().cpu()
    norms = a.norm(), b.norm()
    return float(torch.dot(a, b) / (norms[0] * norms[1])), float(norms[0] / norms[1])


def _total(edit: PeerEdit) -> float:
    return edit.seconds["total"]
