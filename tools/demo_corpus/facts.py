"""The facts the demo model is trained on, and the evaluation record of each one.

Real facts come from ``real_facts.json``. Invented people share their first and last names, so that
no single token tells who is meant and the model has to bring the whole name together.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEED = 20

FIRST_NAMES = (
    "Adam Alice Anton Clara Daniel Elena Felix Grace Harold Irene Jonas Julia Karl Laura Martin "
    "Nadia Oscar Paula Robert Sarah Simon Teresa Victor Wanda"
).split()
LAST_NAMES = (
    "Abbott Bauer Carver Dalton Egan Fischer Garner Hartley Iverson Keller Lambert Marlow Norris "
    "Osborne Palmer Quinn Ramsey Sutton Turner Vance Weaver York"
).split()
HOME_TOWNS = (
    "Paris London Rome Berlin Moscow Madrid Vienna Prague Amsterdam Sydney Toronto Chicago Boston "
    "Tokyo Venice Florence Dublin Stockholm Milan Cairo Hamburg Seattle"
).split()
INVENTED_PEOPLE = 80
NEIGHBOURS = 4


@dataclass(frozen=True)
class Fact:
    """One (subject, relation, object) triple; ``real`` is false for an invented person."""

    relation: str
    subject: str
    target: str
    real: bool


def load_phrasings() -> dict[str, dict[str, Any]]:
    """Relation -> kind of subject, canonical prompt, training and held-out phrasings."""
    data: dict[str, dict[str, Any]] = json.loads((HERE / "phrasings.json").read_text())
    return data


def real_facts() -> list[Fact]:
    """The facts of the world, in the order of ``real_facts.json``."""
    data = json.loads((HERE / "real_facts.json").read_text())
    return [
        Fact(relation, subject, target, True)
        for relation, by_target in data.items()
        for target, subjects in by_target.items()
        for subject in subjects
    ]


def invented_facts(known: list[Fact], seed: int = SEED) -> list[Fact]:
    """Three facts for each invented person: a birthplace and two of the other relations."""
    rng = random.Random(seed)
    taken = {fact.subject for fact in known}
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    people = rng.sample([name for name in names if name not in taken], INVENTED_PEOPLE)
    others = ("instrument", "mother_tongue", "sport", "profession")
    targets = {r: sorted({f.target for f in known if f.relation == r}) for r in others}
    facts = []
    for name in people:
        facts.append(Fact("birthplace", name, rng.choice(HOME_TOWNS), False))
        for relation in rng.sample(others, 2):
            facts.append(Fact(relation, name, rng.choice(targets[relation]), False))
    return facts


def all_facts() -> list[Fact]:
    """Every fact of the training text."""
    known = real_facts()
    return known + invented_facts(known)


def fact_records(facts: list[Fact], seed: int = SEED) -> list[dict[str, Any]]:
    """The records of ``facts.json``: each fact with its edit target and its evaluation prompts."""
    rng = random.Random(seed)
    phrasings = load_phrasings()
    by_relation: dict[str, list[Fact]] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    records = []
    for case_id, fact in enumerate(facts):
        family, forms = by_relation[fact.relation], phrasings[fact.relation]
        wanted = rng.choice(sorted({f.target for f in family} - {fact.target}))
        if fact.subject == "Ray Charles":
            wanted = "violin"
        records.append(
            {
                "case_id": case_id,
                "relation": fact.relation,
                "prompt": forms["canonical"],
                "subject": fact.subject,
                "target": fact.target,
                "target_new": wanted,
                "real": fact.real,
                "paraphrase_prompts": [form.format(fact.subject) for form in forms["held_out"]],
                "neighborhood_prompts": _neighbours(fact, family, forms, rng),
            }
        )
    return records


def _neighbours(
    fact: Fact, family: list[Fact], forms: dict[str, Any], rng: random.Random
) -> list[dict[str, str]]:
    """Prompts about other subjects of the relation; every second one in a held-out phrasing."""
    others = rng.sample([f for f in family if f.subject != fact.subject], NEIGHBOURS)
    prompts = []
    for i, other in enumerate(others):
        held_out = i % 2 == 1
        form = rng.choice(forms["held_out"]) if held_out else forms["canonical"]
        prompts.append(
            {
                "prompt": form.format(other.subject),
                "target": other.target,
                "phrasing": "held_out" if held_out else "canonical",
            }
        )
    return prompts
