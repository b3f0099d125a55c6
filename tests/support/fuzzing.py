"""Random records: with the keys that readers know, and with what should not be there."""

from __future__ import annotations

import random
from typing import Any

KEYS = (
    *(
        "prompt text subject concept target_new target target_true target_false labels "
        "ground_truth chat span space paraphrases paraphrase_prompts rephrase_prompt "
        "rephrase_prompts queries neighborhood neighborhood_prompts locality portability "
        "generation_prompts reference_texts requested_rewrite src alt answers rephrase loc "
        "loc_ans case_id locality_prompt "
        "locality_ground_truth str role content type relation_id cond"
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
    elif draw.random() < 0.2:
        made = {"src": "Paris is in", "subject": "Paris", "alt": "Rome", "answers": ["France"]}
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        key = draw.choice(KEYS) if draw.random() < 0.9 else draw.choice(list(made))
        made[key] = value(draw)
    return made if draw.random() < 0.97 else value(draw)
