"""Why an edit did not take, or spills over: each cause with its number and its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rome_fast.errors import InvalidArgumentError
from rome_fast.moment.collect.collection import ENOUGH_KEYS
from rome_fast.types import LARGE_UPDATE, Diagnostics, EditResult, RankOneUpdate
from rome_fast.value.optimize import NOT_CONVERGED

# Facts are recalled in the lower and middle layers (ROME, section 2.1); the highest layer of a
# preset is GPT-2 small's, the tenth of twelve.
USEFUL_DEPTH = 5 / 6
# A bare prompt's key with a smaller cosine to the mean key is an outlier.
ALIKE = 0.5


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with an edit.

    Attributes:
        cause: a name that does not change: "unconverged", "clamp", "layer", ...
        what: what was found, with its number.
        why: what that means for the edit.
        remedy: what to change.
    """

    cause: str
    what: str
    why: str
    remedy: str


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` found; ``print`` shows it.

    Attributes:
        summary: what the edit did, in a line.
        findings: the likeliest cause first; empty if nothing is wrong.
    """

    summary: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        if not self.findings:
            return f"{self.summary}\nnothing looks wrong"
        parts = [
            f"{i}. {f.what}\n   why   {f.why}\n   try   {f.remedy}"
            for i, f in enumerate(self.findings, 1)
        ]
        return "\n".join([self.summary, *parts])


def explain(result: EditResult) -> Explanation:
    """Say why an edit did not take, or why it may spill over, from what its result holds.

    The model is not run, and nothing is changed.

    Args:
        result: of ``edit``, ``edit_many`` or ``trial``.

    Raises:
        InvalidArgumentError: it is something else.
    """
    if not isinstance(result, EditResult):
        raise InvalidArgumentError(
            f"result must be an EditResult, got {type(result).__name__}: edit() returns one, "
            "edit_many() a list of them"
        )
    checks: tuple[Callable[[EditResult, Diagnostics], Iterator[Finding]], ...] = (
        _already_said,
        _keys,
        _not_converged,
        _runs_on,
        _not_said,
        _layer,
        _size,
        _second_moment,
        _tokens,
    )
    found = [finding for check in checks for finding in check(result, result.diagnostics)]
    verb = "says" if result.success else "does not say"
    summary = (
        f"the model {verb} the target: {result.request.asked!r} -> {result.argmax_after!r}; p "
        f"{result.prob_before:.4f} -> {result.prob_after:.4f}, loss {result.losses[-1]:.2f} after "
        f"{len(result.losses)} steps, {_where(result)}"
    )
    return Explanation(summary, tuple(found))


def _where(result: EditResult) -> str:
    if result.form == "weight":
        return f"layer {result.layer} changed by {result.relative_norm:.0%} of its norm"
    return f"one {result.form} beside layer {result.layer}"


def _is_large(result: EditResult) -> bool:
    return result.form == "weight" and result.relative_norm >= LARGE_UPDATE


def _already_said(result: EditResult, _: Diagnostics) -> Iterator[Finding]:
    if result.rank_before == 1:
        yield Finding(
            "already said",
            f"the target was the answer before the edit (p {result.prob_before:.4f})",
            "there was nothing to change, so nothing looks changed",
            "check prompt and target; for a surer answer ask for a lower loss with more "
            "v_num_grad_steps",
        )


def _not_converged(result: EditResult, numbers: Diagnostics) -> Iterator[Finding]:
    loss, hparams = result.losses[-1], result.hparams
    if loss < NOT_CONVERGED:
        return
    clamp = hparams.clamp_norm_factor
    if numbers.value_growth > 0.99 * clamp:
        yield Finding(
            "clamp",
            f"the offset of the value is held at {clamp:g} times the value's norm",
            f"the loss of {loss:.2f} could not fall further inside that limit",
            f"clamp_norm_factor={2 * clamp:g}, or another layer",
        )
        return
    steps = len(result.losses)
    falling = loss < 0.9 * result.losses[max(0, steps - 4)]
    # L-BFGS finds the length of its steps by itself.
    longer = f"v_lr={2 * hparams.v_lr:g}, or " if hparams.solver == "adam" else ""
    yield Finding(
        "unconverged",
        f"the search for the value ended at a loss of {loss:.2f} (v_stop_loss is "
        f"{hparams.v_stop_loss:g}), {'still falling, ' if falling else ''}after {steps} steps",
        "no value was found that makes the model say the target in all contexts",
        f"v_num_grad_steps={2 * steps}"
        if falling
        else f"{longer}another layer (rome_fast.suggest_layer)",
    )


def _runs_on(result: EditResult, _: Diagnostics) -> Iterator[Finding]:
    if result.runs_on:
        said = f"{result.argmax_after}{result.then}"
        yield Finding(
            "runs on",
            f"the model goes on inside the target's word: {said!r}",
            "every token of the target is the likeliest, and what is said is another word",
            f"a target that ends, {result.request.target.rstrip() + '.'!r}",
        )


def _not_said(result: EditResult, numbers: Diagnostics) -> Iterator[Finding]:
    if result.rank_after == 1 or result.losses[-1] >= NOT_CONVERGED:
        return
    if numbers.weight_dtype != "float32":
        remedy = "edit in float32, and convert the weights afterwards"
    elif result.variant != "both_keys":
        remedy = 'variant="both_keys"'
    elif result.window > 1:
        remedy = 'a smaller window, or order="exact"'
    else:
        remedy = "more v_num_grad_steps, for a lower loss in every context"
    yield Finding(
        "not said",
        f"the value was found (loss {result.losses[-1]:.2f}), but the edited "
        f"{numbers.weight_dtype} weights give the target rank {result.rank_after}",
        "the update does not write the value that was found, for the key of the bare prompt",
        remedy,
    )


def _layer(result: EditResult, numbers: Diagnostics) -> Iterator[Finding]:
    fine = result.success and not _is_large(result)
    if fine or (result.layer + 1) / numbers.n_layers <= USEFUL_DEPTH:
        return
    yield Finding(
        "layer",
        f"layer {result.layer} of {numbers.n_layers} (counted from 0) is one of the last",
        "there the fact has usually left the subject's last token already",
        "rome_fast.suggest_layer(model, tok, requests), or `rome-fast plan`",
    )


def _keys(result: EditResult, numbers: Diagnostics) -> Iterator[Finding]:
    if numbers.key_agreement >= ALIKE:
        return
    first = numbers.lookup_index == 0
    place = ": it is the first token of the text" if first else ""
    yield Finding(
        "keys",
        f"the key of the bare prompt has a cosine of {numbers.key_agreement:.2f} with the mean key "
        f"of its contexts{place}",
        "the edit holds for the one, or for the other, or is large; the first implementation "
        "breaks the model here",
        "words before the subject in the prompt"
        + ("" if result.variant == "both_keys" else ', or variant="both_keys"'),
    )


def _size(result: EditResult, _: Diagnostics) -> Iterator[Finding]:
    if _is_large(result):
        yield Finding(
            "large update",
            f"the update is {result.relative_norm:.0%} of the weight's norm",
            "other subjects, and edits made before, are moved by it too",
            f"v_weight_decay={2 * result.hparams.v_weight_decay:g}, another layer, or "
            "a second moment if it is the identity",
        )


def _second_moment(result: EditResult, numbers: Diagnostics) -> Iterator[Finding]:
    if not isinstance(result.update, RankOneUpdate):
        return
    d_key = len(result.update.u)
    if numbers.n_keys is None:
        yield Finding(
            "identity",
            "the second moment is the identity",
            "the target is said as well as with one, but similar keys get their share of the edit",
            "mom2_adjustment=True and second_moment=None (ordinary text), or texts",
        )
    elif numbers.n_keys < d_key:
        yield Finding(
            "few keys",
            f"the second moment has {numbers.n_keys:,} keys for {d_key:,} dimensions",
            "neighbours are protected less than they could be",
            f"collect_second_moment with {ENOUGH_KEYS * d_key:,} tokens or more",
        )


def _tokens(result: EditResult, numbers: Diagnostics) -> Iterator[Finding]:
    looked_up = result.subject_token.strip()
    if len(looked_up) == 1 and looked_up.isascii():
        yield Finding(
            "subject token",
            f"the fact is looked up at {result.subject_token!r}, a token of one character",
            "many subjects end in it, and their keys are alike",
            "a fuller subject, up to a word that is its own",
        )
    if len(result.target_tokens) > 1 and result.rank_after > 1:
        yield Finding(
            "target tokens",
            f"the target has {len(result.target_tokens)} tokens: {list(result.target_tokens)}",
            "each must be the likeliest after those before it",
            f"v_num_grad_steps={2 * result.hparams.v_num_grad_steps}, or a target of fewer tokens",
        )
