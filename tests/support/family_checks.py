"""The numbers measured of a family: the tests assert on them, `make models` prints them.

Text and tokenizers are real, so that library and oracle each find token positions themselves. Steps
are few: Adam divides by the square root of small second moments, so that rounding grows with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

from helpers import same_bits, state
from oracle import OracleEdit, oracle_edit
from tiny import tiny_second_moment

import rome_fast
from rome_fast.model.spec import ModelSpec
from rome_fast.value import window
from rome_fast.value.optimize import Value

CONTEXTS = ["{}", "The weather was fine. {}", "He is a man. {}"]
SUBJECT = "Marie Curie"  # four tokens or more
PROMPTS = {
    "first": "{} is in",
    "middle": "The mother of {} is",
    "last": "We drink tea with {}",
}
TARGETS = {1: "capital", 3: "Paris"}
STEPS = 5
RTOL = 1e-4


@dataclass(frozen=True)
class Exactness:
    """How far one edit is from the whole-model oracle's, in float64.

    Attributes:
        losses: largest difference, as a share of the oracle's loss.
        value, update: norm of the difference of v*'s offset and of the update, as a share.
        moved: largest change of the loss in the search, as a share of the first one.
        obstacle: why the whole model was run in every step, or "".
    """

    losses: float
    value: float
    update: float
    moved: float
    obstacle: str

    @property
    def holds(self) -> bool:
        """Whether the suffix forward ran and was exact, in a search that changed the loss."""
        exact = max(self.losses, self.value, self.update) <= RTOL
        return exact and not self.obstacle and self.moved > 5 * RTOL


@contextmanager
def values_found() -> Iterator[list[Value]]:
    """Yield a list that collects the values that the library finds, which a result lacks."""
    found: list[Value] = []
    own = window.optimize_values

    def spy(*args):
        found.extend(own(*args))
        return found[-args[2].n_edits :]

    with mock.patch.object(window, "optimize_values", spy):
        yield found


def case(place: str = "middle", n_target: int = 3, subject: str = SUBJECT) -> dict[str, str]:
    return {"prompt": PROMPTS[place], "subject": subject, "target_new": TARGETS[n_target]}


def options(model, layer: int, **hparams) -> dict:
    """Keyword arguments of ``edit`` for a search of ``STEPS`` steps."""
    hparams = rome_fast.RomeHparams(
        layers=[layer], v_num_grad_steps=STEPS, variant="original", **hparams
    )
    matrix, _ = _moment_of(model, hparams)
    return {
        "hparams": hparams,
        "second_moment": rome_fast.SecondMoment.from_moment(matrix, 10_000),
        "context_templates": CONTEXTS,
    }


def expected_of(model, tok, request, hparams: rome_fast.RomeHparams) -> OracleEdit:
    """The oracle's edit."""
    matrix, name = _moment_of(model, hparams)
    return oracle_edit(
        model,
        tok,
        prompt=request["prompt"],
        subject=request["subject"],
        target=request["target_new"],
        context_templates=CONTEXTS,
        second_moment=matrix,
        down_projection=name,
        steps=STEPS,
        fact_token=hparams.fact_token,
        clamp=hparams.clamp_norm_factor,
    )


def compare(result, value: Value, expected: OracleEdit) -> Exactness:
    """Compare one result with the oracle's edit of the same request."""
    pairs = list(zip(result.losses, expected.losses, strict=True))
    return Exactness(
        losses=max(abs(a - b) / b for a, b in pairs),
        value=off_by(value.value_delta, expected.delta),
        update=off_by(result.update.dense(), expected.dense),
        moved=max(abs(b - expected.losses[0]) for b in expected.losses) / expected.losses[0],
        obstacle=value.obstacle,
    )


def exactness(model, tok, request=None, layer: int = 1, **hparams) -> Exactness:
    """Edit one fact, compare it with the oracle's edit, and undo it."""
    request = case() if request is None else request
    settings = options(model, layer, **hparams)
    expected = expected_of(model, tok, request, settings["hparams"])
    with values_found() as values, rome_fast.trial(model, tok, request, **settings) as result:
        return compare(result, values[-1], expected)


def edits_and_undoes(model, tok, layer: int = 1, **hparams) -> tuple[bool, bool]:
    """(a longer edit makes the target likelier, undoing it gives the model's bits back)."""
    before = state(model)
    settings = options(model, layer, v_lr=0.2, clamp_norm_factor=12, **hparams)
    settings["hparams"] = settings["hparams"].replace(v_num_grad_steps=8, variant="both_keys")
    result = rome_fast.edit(model, tok, case("last", 1), **settings)
    edited = result.prob_after > 1.1 * result.prob_before and not same_bits(model, before)
    result.revert()
    return edited, same_bits(model, before)


def off_by(found, expected) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def _moment_of(model, hparams: rome_fast.RomeHparams):
    spec = ModelSpec.of(model)
    projection = spec.down_projection(hparams.layer, hparams.shared_expert)
    # Not projection.name, which leaves out PEFT's wrappers.
    [name] = [name for name, module in model.named_modules() if module is projection.module]
    return tiny_second_moment(projection.d_key), name
