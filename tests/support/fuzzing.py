"""Random records: with the keys that readers know, and with what should not be there."""

from __future__ import annotations

import copy
import random
from typing import Any

KEYS = (
    *(
        "prompt text subject concept target_new target target_true target_false labels "
        "ground_truth chat span space paraphrases paraphrase_prompts rephrase_prompt "
        "rephrase_prompts queries neighborhood neighborhood_prompts locality portability "
        "generation_prompts reference_texts requested_rewrite src alt answers rephrase loc "
        "loc_ans case_id locality_prompt "
        "locality_ground_truth str role content type relation_id cond also id update ans mhop "
        "mhop_ans personas edit original_fact test_queries answers value question answer "
        "para_question sub_question sub_answer questions new_answer new_single_hops "
        "fact_new_uns unsfact_triplets_GPT prompt_full target_new_str Forgetfulness "
        "Subject_Aliasing"
    ).split(),
    "New Question",
)
TEXTS = ("", " ", "{}", "{} is in", "Paris", "Paris is in", "Rome", "\ud83d", "é", "[", "None", "1")
ODD = (
    None,
    True,
    False,
    0,
    -1,
    3,
    77.0,
    0.5,
    float("nan"),
    float("inf"),
    b"Paris",
    {"a"},
    object(),
)


# A good record of each layout that is not drawn below.
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"src": "Paris is in", "subject": "Paris", "alt": "Rome", "answers": ["France"]},
    {
        "id": 3,
        "prompt": "Paris is in",
        "subject": "Paris",
        "target": "Rome",
        "locality": [{"loc": "Oslo is in", "loc_ans": "Norway"}],
    },
    {"subject": "Paris", "update": "Paris is in", "ans": "Rome", "mhop": "a?", "mhop_ans": "b"},
    {
        "requested_rewrite": [
            {"prompt": "{} is in", "subject": "Paris", "target_new": {"str": "Rome"}},
            {"prompt": "{} is in", "subject": "Rome", "target_new_str": "Spain"},
        ],
        "questions": ["a?", "b?"],
        "new_answer": "c",
        "new_single_hops": [{"question": "d?", "answer": "e"}],
    },
    {
        "edit": {"prompt": "The capital of Oz is Rome.", "relation": "CAPITAL"},
        "Forgetfulness": [{"test_queries": [{"prompt": "a", "answers": [{"value": "b"}]}]}],
    },
    {"question": "a?", "answer": "b", "sub_question": ["c?"], "sub_answer": ["d"]},
    {
        "requested_rewrite": {
            "prompt": "{} is in",
            "subject": "Paris",
            "target_true": {"str": "France"},
            "fact_new_uns": "Paris is in Rome.",
            "unsfact_triplets_GPT": [{"prompt": "{} is", "subject": "Rome", "target": "there"}],
        },
        "neighborhood_prompts": ["Oslo is in"],
    },
    {
        "prompt": "{} is in",
        "subject": "Paris",
        "target_new": "Rome",
        "also": [{"prompt": "{} is in", "subject": "Rome", "target_new": "Spain"}],
    },
)


def value(draw: random.Random, depth: int = 3) -> Any:
    """Anything, of texts and known keys mostly."""
    kind = draw.random()
    if kind < 0.45 or not depth:
        return draw.choice(TEXTS) if draw.random() < 0.8 else draw.choice(ODD)
    if kind < 0.6:
        return draw.choice(ODD)
    items = range(draw.choice((0, 1, 1, 2, 2, 3)))
    if kind < 0.8:
        made = [value(draw, depth - 1) for _ in items]
        return made if draw.random() < 0.8 else tuple(made)
    keys = [draw.choice(ODD[:9]) if draw.random() < 0.1 else draw.choice(KEYS) for _ in items]
    return {key: value(draw, depth - 1) for key in keys}


def record(draw: random.Random) -> Any:
    """A good record of some layout, most of the time, in which some fields are anything."""
    made: dict[Any, Any] = {
        "prompt": draw.choice(("{} is in", "Paris is in")),
        "subject": "Paris",
        draw.choice(("target_new", "target")): draw.choice(("Rome", {"str": "Rome"})),
    }
    if draw.random() < 0.2:
        made = {"requested_rewrite": made, "case_id": 3}
    elif draw.random() < 0.6:
        made = copy.deepcopy(draw.choice(LAYOUTS))
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        key = draw.choice(KEYS) if draw.random() < 0.8 else draw.choice(list(made))
        inner = made.get(key)
        if isinstance(inner, list) and inner:
            inner = inner[0]
        if isinstance(inner, dict) and inner and draw.random() < 0.7:
            inner[draw.choice(list(inner))] = value(draw)
        else:
            made[key] = value(draw)
    return made if draw.random() < 0.97 else value(draw)
