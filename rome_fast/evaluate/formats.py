"""The layouts that records are published in, and how one record of each is read.

They are told apart by their keys; `rome_fast.evaluate.layouts` and `ripple` make a "flat" record of
any, and docs/datasets.md says which data sets they are of. If several spellings of a field are
there, the first one counts; if a prompt has several answers (aliases), the first one, as in
EasyEdit. The fields of a flat record:

    ======================  ====================================================================
    ``prompt``              ``prompt``, ``text``
    ``subject``             ``subject``, ``concept``; may be left out beside a ``span``
    as in an EditRequest    ``chat``, ``chat_template_kwargs``, ``span``, ``space``, ``aliases``,
                            ``end``; ``prompt`` may also be a list of messages
    ``target_new``          ``target_new``, ``target``, ``target_false``, ``labels``
    ``target_true``         ``target_true``, ``ground_truth``
    ``paraphrases``         ``paraphrases``, ``paraphrase_prompts``, ``rephrase_prompt``,
                            ``rephrase_prompts``, ``rephrase``, ``queries``: one text or a list
    ``neighborhood``        ``neighborhood``, ``neighborhood_prompts``: texts that are answered with
                            ``target_true``, or ``{prompt, target}``; ``locality_prompt`` with
                            ``locality_ground_truth``
    ``locality``            {group: questions}, either a list of ``{prompt, ground_truth}`` or one
    ``portability``         dict of two lists
    ``generation_prompts``  ``generation_prompts``, ``queries``
    ``reference_texts``     ``reference_texts``
    ``question``            ``question``: how one asks for the fact
    ``also``                flat records of edits that are made together with this one
    ======================  ====================================================================

Keys that are not named here are not read, and ``load_records`` says which they were; those that
published data sets have and no figure uses are passed over in silence. A question of a locality or
portability group without an answer is left out, as by EasyEdit, and ``load_records`` says how many
were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rome_fast.errors import InvalidRequestError
from rome_fast.evaluate import layouts
from rome_fast.evaluate.fields import (
    NEIGHBORHOOD,
    case_id_of,
    first_of,
    groups_of,
    listed,
    mapping,
    neighborhood_of,
    number_as_text,
    string,
    strings,
    text_of,
)
from rome_fast.evaluate.records import EditRecord
from rome_fast.evaluate.ripple import CRITERIA, ripple_edits
from rome_fast.types import EditRequest

_TEXTS = {
    "paraphrases": (
        "paraphrases",
        "paraphrase_prompts",
        "rephrase_prompt",
        "rephrase_prompts",
        "rephrase",
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
_FORM = ("chat", "chat_template_kwargs", "span", "space", "aliases", "end")

# CSV cells of these columns may hold JSON, since plain text cannot hold a list.
JSON_COLUMNS = frozenset({*(key for keys in _TEXTS.values() for key in keys), *NEIGHBORHOOD})
JSON_COLUMNS |= frozenset({*_GROUPS, *_FORM, "also"})
_READ = JSON_COLUMNS | {*(key for keys in _ONE.values() for key in keys), "case_id"}
_READ |= {"locality_prompt", "locality_ground_truth", "question"}
# Of published layouts, and of no use here: nobody needs to be told.
_UNUSED = {"attribute_prompts", "cond", "known_id", "neighborhood_target", "pararel_idx", "pred"}
_UNUSED |= {"relation_id"}


@dataclass(frozen=True)
class Format:
    """One layout.

    Attributes:
        keys: groups of keys; a record of this layout has one key of each group. After a dot stands
            the key of what lies under the one before it, or of the first item of a list there.
        flatten: a record of it -> the same as a "flat" one.
        reads: the keys that only this layout has, or how they begin, with "*".
        leaves: keys that its data sets have beside that, and nobody misses.
    """

    keys: tuple[tuple[str, ...], ...]
    flatten: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    reads: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()

    def matches(self, raw: Mapping[str, Any]) -> bool:
        """Whether a record has the keys of this layout."""
        return all(any(_has(raw, key) for key in group) for group in self.keys)

    def knows(self, key: Any) -> bool:
        """Whether it reads a key of a record, or nobody misses it."""
        if key in _READ or key in _UNUSED or key in (*self.reads, *self.leaves):
            return True
        begins = tuple(name[:-1] for name in self.reads if name.endswith("*"))
        return isinstance(key, str) and key.startswith(begins)

    def __str__(self) -> str:
        return ", ".join("|".join(group) for group in self.keys)


def _has(raw: Any, path: str) -> bool:
    for key in path.split("."):
        inner = next(iter(listed(raw)), None)
        if not isinstance(inner, Mapping) or key not in inner:
            return False
        raw = inner[key]
    return True


_ZSRE = ("src", "alt", "answers", "loc", "loc_ans")
_CHAIN = ("requested_rewrite", "questions", "new_answer", "new_single_hops")
_CHAIN_TOO = (
    *("answer", "answer_alias", "new_answer_alias", "answer_extended", "single_hops", "orig"),
    *("orig_triples", "orig_triples_labeled", "new_triples", "new_triples_labeled"),
    "edit_triples",
)
# In the order in which they are tried: the first one that matches is taken.
FORMATS = {
    "akew": Format(
        (("requested_rewrite.fact_new_uns",),),
        layouts.akew,
        (*_CHAIN, "loc", "loc_ans"),
        _CHAIN_TOO,
    ),
    "mquake": Format(
        (("requested_rewrite",), ("questions",), ("new_answer",)),
        layouts.mquake,
        _CHAIN,
        _CHAIN_TOO,
    ),
    "counterfact": Format((("requested_rewrite",),), layouts.counterfact, ("requested_rewrite",)),
    "ripple_edits": Format(
        (("edit.prompt",), ("edit.relation", "edit.subject_id")),
        ripple_edits,
        ("edit", *CRITERIA),
        ("example_type",),
    ),
    "wikibigedit": Format(
        (("subject",), ("update",), ("ans",)),
        layouts.wikibigedit,
        ("update", "ans", "loc", "loc_ans", "mhop", "mhop_ans", "personas*"),
        ("tag", "relation", "object", "subject_id", "object_id"),
    ),
    "unke": Format(
        (("question",), ("answer",), ("para_question", "sub_question")),
        layouts.unke,
        ("id", "question", "answer", "para_question", "sub_question", "sub_answer"),
    ),
    "zsre": Format((("subject",), ("src",), ("alt",)), layouts.zsre, _ZSRE),
    "zsre_rome": Format((("subject",), ("src",), ("answers",)), layouts.zsre_rome, _ZSRE),
    "qaedit": Format(
        (("prompt",), ("subject",), ("target",), ("locality.loc",)),
        layouts.qaedit,
        ("id",),
        ("source",),
    ),
    "flat": Format(
        (_ONE["prompt"], (*_ONE["subject"], "span"), _ONE["target_new"]), lambda raw: raw
    ),
}


def unread(raw: Mapping[str, Any], layout: Format) -> list[str]:
    """The keys of a record that nothing reads, but for those that nobody misses."""
    return [str(key) for key in raw if not layout.knows(key)]


def parse_record(
    raw: Mapping[str, Any], layout: Format, case_id: int, unanswered: Counter[str]
) -> EditRecord:
    """Read one record.

    Args:
        case_id: for one that has none of its own.
        unanswered: counts, by the group, questions that are left out since they have no answer.

    Raises:
        InvalidRequestError: something is missing or malformed; the message is the reason.
    """
    flat = layout.flatten(raw)
    also = [mapping(item, "also") for item in listed(flat.get("also") or None)]
    number = case_id_of(flat.get("case_id"), case_id)
    if any(item.get("also") for item in also):
        raise InvalidRequestError("also holds a record with an also of its own")
    more = tuple(_parsed(item, number, unanswered) for item in also)
    return _parsed(flat, number, unanswered, also=more)


def _parsed(
    flat: Mapping[str, Any],
    case_id: int | str,
    unanswered: Counter[str],
    also: tuple[EditRecord, ...] = (),
) -> EditRecord:
    one = {name: number_as_text(text_of(first_of(flat, keys))) for name, keys in _ONE.items()}
    true = one.pop("target_true") or None
    # An empty cell of a CSV counts as absent.
    form = {key: flat[key] for key in _FORM if flat.get(key) not in (None, "")}
    if form.get("span") is not None and one["subject"] is None:
        one["subject"] = ""
    if missing := [name for name, value in one.items() if value is None]:
        raise InvalidRequestError(
            f"{', '.join(missing)} missing; it has "
            + ", ".join(str(key) for key, value in flat.items() if value is not None)
        )
    groups: dict[str, Any] = {name: groups_of(name, flat.get(name), unanswered) for name in _GROUPS}
    texts: dict[str, Any] = {
        name: tuple(text for key in keys for text in strings(key, flat.get(key)))
        for name, keys in _TEXTS.items()
    }
    asked = flat.get("question") or None
    return EditRecord(
        case_id=case_id,
        question=None if asked is None else string(asked, "question"),
        request=EditRequest(one["prompt"], one["subject"], one["target_new"], **form),
        target_true=None if true is None else string(true, "target_true"),
        neighborhood=tuple(neighborhood_of(flat, true)),
        also=also,
        **groups,
        **texts,
    )
