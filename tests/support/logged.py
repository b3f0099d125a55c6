"""A log of three edits, and the model that it was made on."""

import copy

from rome_fast import HealthCheck, Session

NAME = "transformer.h.1.mlp.c_proj.weight"
FACTS = [
    ("The founder is {}", "Steve Jobs", "capital"),
    ("The old tower is {}", "Eiffel Tower", "near"),
    ("We drink tea with {}", "Ada Lovelace", "near"),
]
REQUESTS = [dict(zip(("prompt", "subject", "target_new"), fact, strict=True)) for fact in FACTS]


def edited(model, tok, settings, requests=REQUESTS, **options):
    """(log, edited copy of the model)."""
    model = copy.deepcopy(model)
    health = HealthCheck(every=0)
    with Session(model, tok, **settings, **options, health=health, form="weight") as session:
        session.edit_many(requests, progress=False)
        return session.log, model
