"""Why a layer is recommended, and what speaks against trusting that, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rome_fast.locate.plan import tied_of

if TYPE_CHECKING:
    from rome_fast.locate.plan import LayerTrial
    from rome_fast.locate.trials import Trials

# With fewer requests one of them is more than a tenth of every share.
_FEW = 10
_RELIABLE = 0.9


def reasons_for(
    best: LayerTrial, found: Sequence[LayerTrial], effects: Sequence[float], trials: Trials
) -> Iterator[str]:
    """Sentences, the most important first."""
    n = len(trials.records)
    yield f"layer {best.layer}: {_measured(best)} of {n} trial edits"
    yield from _against_the_others(best, found)
    yield _against_tracing(best.layer, effects)
    if best.success < _RELIABLE:
        yield (
            f"even layer {best.layer} edits only {best.success:.0%}: try more v_num_grad_steps, a "
            "larger clamp_norm_factor, or other layers"
        )
    if best.unconverged:
        yield (
            f"v* did not converge in {best.unconverged} of the {n} edits of layer {best.layer} "
            f"(mean loss {best.loss:.2f}): more v_num_grad_steps may help"
        )
    for failure in best.failures[:3]:
        yield f"no update was made for {failure}"
    if not trials.own_neighbors and best.locality is not None:
        yield "locality is that of other requests' prompts, where a record brings no neighbours"
    if best.paraphrase is None:
        yield "the requests bring no paraphrases: whether an edit generalises was not measured"
    if n < _FEW:
        yield f"{n} requests are few: layers with like scores may differ by chance"


def _measured(trial: LayerTrial) -> str:
    parts = (
        ("success", trial.success),
        ("paraphrases", trial.paraphrase),
        ("locality", trial.locality),
    )
    return ", ".join(f"{name} {share:.0%}" for name, share in parts if share is not None)


def _against_the_others(best: LayerTrial, found: Sequence[LayerTrial]) -> Iterator[str]:
    others = [trial for trial in found if trial is not best]
    tied = [trial for trial in tied_of(found) if trial is not best]
    if tied and best.relative_norm is not None:
        names = ", ".join(f"layer {trial.layer}" for trial in tied)
        yield (
            f"as good within one request: {names}; but in layer {best.layer} the updates are the "
            f"smallest ({best.relative_norm:.2%} of the weight's norm)"
        )
    elif others:
        second = max(others, key=lambda trial: trial.score)
        yield f"next best is layer {second.layer} with {_measured(second)}"


def _against_tracing(layer: int, effects: Sequence[float]) -> str:
    traced = max(range(len(effects)), key=effects.__getitem__)
    brought = f"restored MLPs around layer {traced} bring back most ({effects[traced]:+.3f})"
    if traced == layer:
        return f"tracing agrees: {brought}"
    return f"tracing points elsewhere: {brought}, around layer {layer} {effects[layer]:+.3f}"
