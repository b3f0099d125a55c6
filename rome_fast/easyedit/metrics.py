"""EasyEdit's metrics of one request: teacher-forced accuracies, locality as unchanged argmax."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rome_fast.easyedit.requests import SECTIONS, rephrased
from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.fields import groups_of
from rome_fast.evaluate.generation import generate, ngram_entropy
from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import score
from rome_fast.types import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Both name the same measure in EasyEdit: the share of the target's tokens that are the likeliest.
EVAL_METRICS = ("exact match", "token_em")
# Tokens of the text whose fluency is measured, as many as EasyEdit's.
GENERATED = 100


def check_metric(eval_metric: str) -> None:
    """Raise InvalidArgumentError for one of EasyEdit's measures that is not here."""
    if eval_metric not in EVAL_METRICS:
        raise InvalidArgumentError(
            f"eval_metric must be one of {EVAL_METRICS} (token accuracy, teacher-forced), got "
            f"{eval_metric!r}; rome_fast.evaluate has other measures"
        )


def measure(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[dict[str, Any]],
    test_generation: bool = False,
) -> list[dict[str, Any]]:
    """EasyEdit's metrics, its "pre" or "post", of each request on the model as it is.

    All questions of all requests are scored together. ``test_generation`` adds the entropy of the
    prompt with its greedy continuation. Under "locality" are the likeliest tokens
    only; ``compare_locality`` turns two of these dictionaries into an accuracy.
    """
    asked = [(i, *item) for i, request in enumerate(requests) for item in _questions(request)]
    scores = score(model, tok, [question for *_, question in asked])
    measured: list[dict[str, Any]] = [
        {"metric_meta": {}, **{section: {} for section in SECTIONS}} for _ in requests
    ]
    for (i, section, name, _), made in zip(asked, scores, strict=True):
        result = measured[i]
        if section == "locality":
            result[section].setdefault(f"{name}_output", []).append(list(made.argmax_ids))
        elif section == "portability":
            result[section].setdefault(f"{name}_acc", []).append(made.accuracy)
        else:
            result.setdefault(f"{section}_acc", []).append(made.accuracy)
            result["metric_meta"][section] = _meta(
                f"{section}_acc", "decoder_only_teacher_forcing", "token_accuracy", "lm."
            )
    if test_generation:
        prompts = [EditRequest.parse(request).text for request in requests]
        texts = generate(model, tok, prompts, GENERATED)
        for result, prompt, text in zip(measured, prompts, texts, strict=True):
            result["fluency"] = {"ngram_entropy": ngram_entropy([prompt + text])}
    return measured


def compare_locality(pre: dict[str, Any], post: dict[str, Any]) -> None:
    """Add to ``post`` the share of each locality answer's tokens that are as they were in ``pre``.

    Raises:
        InvalidArgumentError: ``pre`` was measured on other questions.
    """
    for key, after in list(post["locality"].items()):
        name = key.removesuffix("_output")
        before = pre.get("locality", {}).get(key)
        if before is None or [len(ids) for ids in before] != [len(ids) for ids in after]:
            raise InvalidArgumentError(
                f"pre_edit has no locality answers {key!r} of the same lengths: it belongs to "
                "other requests"
            )
        post["locality"][f"{name}_acc"] = [
            sum(map(int.__eq__, old, new)) / len(new)
            for old, new in zip(before, after, strict=True)
        ]
        post["metric_meta"][f"locality.{name}"] = _meta(
            f"locality.{name}_acc", "pre_post_argmax_token_match", "token_match", "locality.lm."
        )


def _questions(request: dict[str, Any]) -> Iterator[tuple[str, str, Question]]:
    edit = EditRequest.parse(request)
    yield "rewrite", "", Question(edit.text, edit.target)
    for text in rephrased(request):
        yield "rephrase", "", Question(text, edit.target)
    for section in SECTIONS:
        for name, group in groups_of(section, request[section]).items():
            for question in group:
                yield section, name, question


def _meta(key: str, protocol: str, scorer: str, prefix: str) -> dict[str, str]:
    """How a number was measured, in EasyEdit's words."""
    group = prefix + (protocol if prefix.startswith("locality") else f"{protocol}.{scorer}")
    return {
        "result_key": key,
        "protocol": protocol,
        "scorer": scorer,
        "comparable_group": group,
    }
