"""EasyEdit's parallel lists -> its request dictionaries, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rome_fast.errors import InvalidRequestError
from rome_fast.evaluate.fields import groups_of
from rome_fast.types import EditRequest

SECTIONS = ("locality", "portability")


def build_requests(
    prompts: object,
    target_new: object,
    ground_truth: object = None,
    target_neg: object = None,
    rephrase_prompts: object = None,
    subject: object = None,
    locality: Mapping[str, Mapping[str, Any]] | None = None,
    portability: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """One dictionary per edit, with EasyEdit's keys; a string stands for a list of one.

    Raises:
        InvalidRequestError: a list is not as long as ``prompts``; the message names both.
    """
    n = len(_as_list(prompts))
    if subject is None:
        raise InvalidRequestError("ROME needs subject=, for each prompt the part of it to look up")
    columns = {
        "prompt": _column("prompts", prompts, n),
        "target_new": _column("target_new", target_new, n),
        "ground_truth": _column("ground_truth", ground_truth, n),
        "subject": _column("subject", subject, n),
    }
    requests: list[dict[str, Any]] = [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]
    for key, name, given in (
        ("rephrase_prompt", "rephrase_prompts", rephrase_prompts),
        ("target_neg", "target_neg", target_neg),
    ):
        for request, value in zip(requests, _column(name, given, n), strict=True):
            if value is not None:
                request[key] = value
    for section, groups in zip(SECTIONS, (locality, portability), strict=True):
        for request, own in zip(requests, _groups(section, groups, n), strict=True):
            request[section] = own
    return check_requests(requests)


def check_requests(requests: object) -> list[dict[str, Any]]:
    """Copies of EasyEdit's request dictionaries with every key that is read later.

    Raises:
        InvalidRequestError, SubjectNotFoundError: names the request and what is wrong with it.
    """
    if isinstance(requests, Mapping | str) or not isinstance(requests, Sequence) or not requests:
        raise InvalidRequestError(f"requests must be a non-empty list of dicts, got {requests!r}")
    checked = []
    for i, given in enumerate(requests):
        try:
            if isinstance(given, EditRequest):
                given = given.to_json()
            EditRequest.parse(given)
            request = {"ground_truth": None, **{key: {} for key in SECTIONS}, **given}
            rephrased(request)
            for section in SECTIONS:
                groups_of(section, request[section])
        except InvalidRequestError as error:
            raise type(error)(f"requests[{i}]: {error}") from error
        checked.append(request)
    return checked


def rephrased(request: Mapping[str, Any]) -> list[str]:
    """The other texts of a request that should go on with its target: none, one, or a list.

    Raises:
        InvalidRequestError: something that is not a text.
    """
    given = request.get("rephrase_prompt")
    texts = [] if given is None else _as_list(given)
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InvalidRequestError(f"rephrase_prompt must be text or a list, got {text!r}")
    return texts


def _groups(
    section: str, given: Mapping[str, Mapping[str, Any]] | None, n: int
) -> list[dict[str, dict[str, Any]]]:
    """The groups of each edit; a group whose prompt is None is left out."""
    own: list[dict[str, dict[str, Any]]] = [{} for _ in range(n)]
    if given is not None and not isinstance(given, Mapping):
        raise InvalidRequestError(
            f"{section}_inputs must be a dict of names, each with {{'prompt': ..., "
            f"'ground_truth': ...}}, got {given!r:.80}"
        )
    for name, group in (given or {}).items():
        if not isinstance(group, Mapping) or not {"prompt", "ground_truth"} <= set(group):
            raise InvalidRequestError(
                f"{section}_inputs[{name!r}] must be a dict with 'prompt' and 'ground_truth', got "
                f"{group!r:.80}"
            )
        where = f"{section}_inputs[{name!r}]"
        prompts = _column(f"{where}['prompt']", group["prompt"], n)
        answers = _column(f"{where}['ground_truth']", group["ground_truth"], n)
        for request, prompt, answer in zip(own, prompts, answers, strict=True):
            if prompt is not None:
                request[name] = {"prompt": prompt, "ground_truth": answer}
    return own


def _column(name: str, given: object, n: int) -> list[Any]:
    values = [None] * n if given is None else _as_list(given)
    if len(values) != n:
        raise InvalidRequestError(
            f"{name} has {len(values)} entries for {n} prompts: give one for each, or None"
        )
    return values


def _as_list(given: object) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]
