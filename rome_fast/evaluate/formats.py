"""The layouts that records are published in, and how one record of each is read.

Four layouts, told apart by their keys. If several spellings of a field are there, the first one
counts; if a prompt has several answers (aliases), the first one, as in EasyEdit.

``"counterfact"``: CounterFact and multi-CounterFact (kmeng01/rome, memit). The request lies under
    ``requested_rewrite``; ``neighborhood_prompts`` are answered with ``target_true``.
``"flat"``: the request lies at the top. EasyEdit's CounterFact and request dict, KnowEdit (ZsRE,
    WikiData counterfact and recent, WikiBio), FastEdit, lists of kmeng01/rome's requests,
    counterfact-tracing, and JSONL or CSV with an EditRecord's own field names:

    ======================  ====================================================================
    ``prompt``              ``prompt``, ``text``
    ``subject``             ``subject``, ``concept``; may be left out beside a ``span``
    as in an EditRequest    ``chat``, ``chat_template_kwargs``, ``span``, ``space``; ``prompt`` may
                            also be a list of messages
    ``target_new``          ``target_new``, ``target``, ``target_false``, ``labels``
    ``target_true``         ``target_true``, ``ground_truth``
    ``paraphrases``         ``paraphrases``, ``paraphrase_prompts``, ``rephrase_prompt``,
                            ``rephrase_prompts``, ``queries``: one text or a list
    ``neighborhood``        ``neighborhood``, ``neighborhood_prompts``: texts that are answered with
                            ``target_true``, or ``{prompt, target}``; ``locality_prompt`` with
                            ``locality_ground_truth``
    ``locality``            {group: questions}, either a list of ``{prompt, ground_truth}`` or one
    ``portability``         dict of two lists
    ``generation_prompts``  ``generation_prompts``, ``queries``
    ``reference_texts``     ``reference_texts``
    ======================  ====================================================================

``"zsre"``: zsRE in MEND's layout (``src``, ``alt``, ``answers``, ``rephrase``, ``loc``). The new
    target is ``alt``, as the data set's own ``cond`` says and EasyEdit does; ``answers[0]`` is the
    true answer.
``"zsre_rome"``: the same file as kmeng01/rome and memit read it: ``answers[0]`` is the new target,
    and a question mark is added to ``loc``. Their published zsRE figures use this layout.

Keys that are not named here are not read, and ``load_records`` says which they were; not of the
identifiers and ``attribute_prompts`` of CounterFact, which no published figure uses. A question of
a locality or portability group without an answer is left out, as by EasyEdit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rome_fast.errors import InvalidRequestError
from rome_fast.evaluate.fields import (
    NEIGHBORHOOD,
    case_id_of,
    first_of,
    groups_of,
    neighborhood_of,
    number_as_text,
    string,
    strings,
    text_of,
)
from rome_fast.evaluate.records import EditRecord
from rome_fast.types import EditRequest

_TEXTS = {
    "paraphrases": (
        "paraphrases",
        "paraphrase_prompts",
        "rephrase_prompt",
        "rephrase_prompts",
        "queries",
    ),
    "generation_prompts": ("generation_prompts", "queries"),
    "reference_texts": ("reference_texts",),
}
_ONE = {
    "prompt": ("prompt", "text"),
    "subject": ("subject", "concept"),
    "target_new": ("target_new", "target", "target_false", "labels"),
    "target_true": ("target_true", "ground_truth"),
}
_GROUPS = ("locality", "portability")
_FORM = ("chat", "chat_template_kwargs", "span", "space")

# CSV cells of these columns may hold JSON, since plain text cannot hold a list.
JSON_COLUMNS = frozenset({*(key for keys in _TEXTS.values() for key in keys), *NEIGHBORHOOD})
JSON_COLUMNS |= frozenset({*_GROUPS, *_FORM})
_READ = JSON_COLUMNS | {*(key for keys in _ONE.values() for key in keys), "case_id"}
_READ |= {"requested_rewrite", "locality_prompt", "locality_ground_truth"}
_READ |= {"src", "alt", "answers", "rephrase", "loc", "loc_ans"}
# Of published layouts, and of no use here: nobody needs to be told.
_UNUSED = {"attribute_prompts", "cond", "known_id", "neighborhood_target", "pararel_idx", "pred"}
_UNUSED |= {"relation_id"}


@dataclass(frozen=True)
class Format:
    """One layout.

    Attributes:
        keys: groups of keys; a record of this layout has one key of each group.
        flatten: a record of it -> the same as a "flat" one.
    """

    keys: tuple[tuple[str, ...], ...]
    flatten: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    def matches(self, raw: Mapping[str, Any]) -> bool:
        """Whether a record has the keys of this layout."""
        return all(any(key in raw for key in group) for group in self.keys)

    def __str__(self) -> str:
        return ", ".join("|".join(group) for group in self.keys)


def _counterfact(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    request = raw.get("requested_rewrite")
    if not isinstance(request, Mapping):
        raise InvalidRequestError(f"requested_rewrite must be a dict, got {request!r}")
    return {**raw, **request}


def _zsre(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        **raw,
        "prompt": raw.get("src"),
        "target_new": raw.get("alt"),
        "target_true": raw.get("answers"),
        "paraphrases": raw.get("rephrase"),
        "locality_prompt": raw.get("loc"),
        "locality_ground_truth": raw.get("loc_ans"),
    }


def _zsre_rome(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    loc = raw.get("loc")
    return {
        **_zsre(raw),
        "target_new": raw.get("answers"),
        "target_true": None,
        "locality_prompt": loc and f"{loc}?",
    }


# In the order in which they are tried: the first one that matches is taken.
FORMATS = {
    "counterfact": Format((("requested_rewrite",),), _counterfact),
    "zsre": Format((("subject",), ("src",), ("alt",)), _zsre),
    "zsre_rome": Format((("subject",), ("src",), ("answers",)), _zsre_rome),
    "flat": Format(
        (_ONE["prompt"], (*_ONE["subject"], "span"), _ONE["target_new"]), lambda raw: raw
    ),
}


def unread(raw: Mapping[str, Any]) -> list[str]:
    """The keys of a record that nothing reads, but for those that nobody misses."""
    return [str(key) for key in raw if key not in _READ and key not in _UNUSED]


def parse_record(raw: Mapping[str, Any], layout: Format, case_id: int) -> EditRecord:
    """Read one record; ``case_id`` is for one that has none of its own.

    Raises:
        InvalidRequestError: something is missing or malformed; the message is the reason.
    """
    flat = layout.flatten(raw)
    one = {name: number_as_text(text_of(first_of(flat, keys))) for name, keys in _ONE.items()}
    true = one.pop("target_true") or None
    # An empty cell of a CSV counts as absent.
    form = {key: flat.get(key) for key in _FORM if flat.get(key) != ""}
    if form.get("span") is not None and one["subject"] is None:
        one["subject"] = ""
    if missing := [name for name, value in one.items() if value is None]:
        raise InvalidRequestError(
            f"{', '.join(missing)} missing; it has "
            + ", ".join(str(key) for key, value in flat.items() if value is not None)
        )
    groups: dict[str, Any] = {name: groups_of(name, flat.get(name)) for name in _GROUPS}
    texts: dict[str, Any] = {
        name: tuple(text for key in keys for text in strings(key, flat.get(key)))
        for name, keys in _TEXTS.items()
    }
    return EditRecord(
        case_id=case_id_of(flat.get("case_id"), case_id),
        request=EditRequest(one["prompt"], one["subject"], one["target_new"], **form),
        target_true=None if true is None else string(true, "target_true"),
        neighborhood=tuple(neighborhood_of(flat, true)),
        **groups,
        **texts,
    )
