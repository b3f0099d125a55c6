"""Write ``rome_fast/demo/smollm2_facts.json``: the facts of the toy's table that SmolLM2 knows.

    python tools/smollm2_facts.py

A fact of the world is kept with the first of its phrasings that the model answers rightly by
itself; the other phrasings are its paraphrases. Its neighbours are other facts that were kept, of
the same relation, two of them with the same object.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from rome_fast.demo import smollm2
from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import score

DEMO = Path(__file__).parent.parent / "rome_fast" / "demo"
NEIGHBOURS = 4

# Shown by ``rome-fast demo``, so its prompts are chosen by hand.
EIFFEL_TOWER = {
    "relation": "landmark",
    "prompt": "{} is located in the city of",
    "subject": "The Eiffel Tower",
    "target": "Paris",
    "target_new": "Rome",
    "real": True,
    "paraphrase_prompts": [
        "To see the Eiffel Tower you should travel to",
        "Tourists who want to climb the Eiffel Tower go to",
        "The best hotels near the Eiffel Tower are in",
    ],
    "neighborhood_prompts": [
        {"prompt": prompt, "target": target, "phrasing": "canonical"}
        for prompt, target in (
            ("The Louvre is located in the city of", "Paris"),
            ("The Statue of Liberty is located in the city of", "New York"),
            ("The capital of France is", "Paris"),
        )
    ],
}


def known_facts() -> list[dict[str, Any]]:
    """The facts with the phrasing that the model answers, without neighbours yet."""
    table = json.loads((DEMO / "facts.json").read_text(encoding="utf-8"))
    world = [fact for fact in table if fact["real"] and "Eiffel" not in fact["subject"]]
    asked = []
    for fact in world:
        texts = [fact["prompt"].replace("{}", fact["subject"]), *fact["paraphrase_prompts"]]
        asked += [(fact, text, [t for t in texts if t != text]) for text in texts]
    model, tok = smollm2.load_smollm2()
    scores = score(model, tok, [Question(text, fact["target"]) for fact, text, _ in asked])
    known: dict[int, dict[str, Any]] = {}
    for (fact, text, others), said in zip(asked, scores, strict=True):
        if said.exact and fact["case_id"] not in known:
            prompt = text.replace(fact["subject"], "{}", 1)
            known[fact["case_id"]] = {**fact, "prompt": prompt, "paraphrase_prompts": others}
    return list(known.values())


def with_neighbours(facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours from the same relation: as many as there are, up to four."""
    drawn = random.Random(0)
    for fact in facts:
        others = [f for f in facts if f["relation"] == fact["relation"] and f is not fact]
        alike = [f for f in others if f["target"] == fact["target"]]
        chosen = drawn.sample(alike, min(len(alike), NEIGHBOURS // 2))
        rest = [f for f in others if f not in chosen]
        chosen += drawn.sample(rest, min(len(rest), NEIGHBOURS - len(chosen)))
        fact["neighborhood_prompts"] = [
            {
                "prompt": f["prompt"].replace("{}", f["subject"]),
                "target": f["target"],
                "phrasing": "canonical",
            }
            for f in chosen
        ]
    return facts


def main() -> None:
    facts = [EIFFEL_TOWER, *with_neighbours(known_facts())]
    numbered = [{**fact, "case_id": number} for number, fact in enumerate(facts)]
    lines = ",\n".join(json.dumps(fact, ensure_ascii=False) for fact in numbered)
    (DEMO / "smollm2_facts.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(numbered)} facts")


if __name__ == "__main__":
    main()
