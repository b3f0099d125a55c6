"""A record of each published layout -> the same as a "flat" one.

What comes out may hold anything; `rome_fast.evaluate.formats` reads it, and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rome_fast.errors import InvalidRequestError
from rome_fast.evaluate.fields import first_of, listed, mapping, string, strings, text_of
from rome_fast.evaluate.records import MULTI_HOP

Raw = Mapping[str, Any]


def counterfact(raw: Raw) -> Raw:
    """CounterFact: the request under a key of its own."""
    return {**raw, **mapping(raw.get("requested_rewrite"), "requested_rewrite")}


def zsre(raw: Raw) -> Raw:
    """zsRE as MEND's and EasyEdit's: ``alt`` is edited in."""
    return {
        **raw,
        "prompt": raw.get("src"),
        "target_new": raw.get("alt"),
        "target_true": raw.get("answers"),
        "locality_prompt": raw.get("loc"),
        "locality_ground_truth": raw.get("loc_ans"),
    }


def zsre_rome(raw: Raw) -> Raw:
    """The same as kmeng01/rome's: ``answers[0]`` is edited in."""
    loc = raw.get("loc")
    return {
        **zsre(raw),
        "target_new": raw.get("answers"),
        "target_true": None,
        "locality_prompt": loc and f"{loc}?",
    }


def qaedit(raw: Raw) -> Raw:
    """QAEdit: neighbours are ``{loc, loc_ans}`` under ``locality``."""
    asked = [mapping(item, "locality") for item in listed(raw.get("locality"))]
    neighbors = [{"prompt": item.get("loc"), "target": item.get("loc_ans")} for item in asked]
    return {**raw, "case_id": raw.get("id"), "locality": None, "neighborhood": neighbors}


def wikibigedit(raw: Raw) -> Raw:
    """WikiBigEdit: one question of each kind; those of personas ask for the new target."""
    asked = {key: (raw[key], raw.get("ans")) for key in raw if str(key).startswith("personas")}
    asked[MULTI_HOP] = (raw.get("mhop"), raw.get("mhop_ans"))
    return {
        **raw,
        "prompt": raw.get("update"),
        "target_new": raw.get("ans"),
        "locality_prompt": raw.get("loc"),
        "locality_ground_truth": raw.get("loc_ans"),
        # A kind that a record lacks is empty there, or a table's NaN.
        "portability": {
            name: {"prompt": prompt, "ground_truth": answer}
            for name, (prompt, answer) in asked.items()
            if isinstance(prompt, str) and prompt.strip()
        },
    }


def mquake(raw: Raw) -> Raw:
    """MQuAKE and MQuAKE-Remastered: edits of a chain of facts, and questions about its end."""
    first, *rest = (_fact(rewrite) for rewrite in _rewrites(raw))
    return {**raw, **first, "also": rest, "portability": _hops(raw)}


def akew(raw: Raw) -> Raw:
    """AKEW: CounterFact's or MQuAKE's keys, with texts to edit in, and the facts they state."""
    first, *rest = (_text_fact(rewrite) for rewrite in _rewrites(raw))
    portability = {**first["portability"], **_hops(raw)}
    neighbors = [
        {"prompt": prompt, "target": first["stated"]}
        for prompt in strings("neighborhood_prompts", raw.get("neighborhood_prompts"))
    ]
    return {
        **raw,
        **first,
        "also": rest,
        "portability": portability,
        "neighborhood_prompts": neighbors,
        "locality_prompt": raw.get("loc"),
        "locality_ground_truth": raw.get("loc_ans"),
    }


def unke(raw: Raw) -> Raw:
    """UnKE: a question and a long answer; its subject is the whole question."""
    question = raw.get("question")
    asked = {"prompt": raw.get("sub_question"), "ground_truth": raw.get("sub_answer")}
    return {
        **raw,
        "case_id": raw.get("id"),
        "prompt": question,
        "question": None,
        "span": [0, len(question)] if isinstance(question, str) else None,
        "target_new": raw.get("answer"),
        "paraphrases": raw.get("para_question"),
        "portability": {"sub_question": asked} if raw.get("sub_question") else None,
    }


def _fact(rewrite: Raw) -> dict[str, Any]:
    return {
        **rewrite,
        "target_new": first_of(rewrite, ("target_new", "target_new_str")),
        "target_true": first_of(rewrite, ("target_true", "target_true_str")),
        "paraphrases": rewrite.get("question"),
        "question": None,
    }


def _text_fact(rewrite: Raw) -> dict[str, Any]:
    triplets = rewrite.get("unsfact_triplets_GPT")
    return {
        "prompt": first_of(rewrite, ("prompt_full", "question", "prompt")),
        "subject": rewrite.get("subject"),
        "target_new": rewrite.get("fact_new_uns"),
        "stated": text_of(rewrite.get("target_true")),
        "portability": {"sub_question": list(_triplets(triplets))},
    }


def _triplets(value: Any) -> Iterator[Raw]:
    name = "unsfact_triplets_GPT"
    for item in listed(value):
        triplet = mapping(item, name)
        prompt, subject = (string(triplet.get(key), name) for key in ("prompt", "subject"))
        yield {"prompt": prompt.replace("{}", subject), "ground_truth": triplet.get("target")}


def _hops(raw: Raw) -> dict[str, Any]:
    """The questions about the end of a chain, and about each of its links."""
    questions = strings("questions", raw.get("questions"))
    links = [mapping(link, "new_single_hops") for link in listed(raw.get("new_single_hops"))]
    return {
        MULTI_HOP: [{"prompt": q, "ground_truth": raw.get("new_answer")} for q in questions],
        "single_hop": [
            {"prompt": link.get("question"), "ground_truth": link.get("answer")} for link in links
        ],
    }


def _rewrites(raw: Raw) -> list[Raw]:
    name = "requested_rewrite"
    found = [mapping(item, name) for item in listed(raw.get(name))]
    if not found:
        raise InvalidRequestError(f"{name} is empty: there is nothing to edit")
    return found
