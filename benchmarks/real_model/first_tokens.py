"""Subjects of one token that open the prompt, where the first token is attention's sink.

    python -m benchmarks.real_model.first_tokens --work FOLDER \
        --out benchmarks/results/real-model-first-tokens.json

100 requests, each edited alone by `rome_fast.edit` as it comes, and, for comparison, in the layer
that it takes for all other requests. SmolLM2's tokenizer puts no BOS before a text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import rome_fast
from rome_fast.bench.setting import setting
from rome_fast.errors import EditRejectedError
from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import score
from rome_fast.hparams import RomeHparams

COUNTRIES = (
    "France Germany Italy Spain Hungary England Japan China India Russia Canada Mexico Egypt "
    "Brazil Australia Israel Iran Pakistan"
).split()
CITIES = "Paris London Rome Boston Chicago Washington Oxford Cambridge".split()
COMPANIES = "Microsoft Apple Google Amazon Facebook".split()
PEOPLE = "Jesus Newton".split()
SOFTWARE = "Python Java Linux Windows".split()

# (subjects, prompt, new objects in turn)
TEMPLATES = (
    (COUNTRIES, "{} is a country on the continent of", ("Africa", "Asia", "Europe")),
    (COUNTRIES, "{} is a country whose capital is", ("Rome", "Tokyo", "Madrid")),
    (COUNTRIES, "{} is a country where people speak", ("Dutch", "Korean", "Greek")),
    (CITIES, "{} is a city in the country of", ("Japan", "Brazil", "Egypt")),
    (CITIES, "{} is a city on the river", ("Nile", "Danube", "Amazon")),
    (COMPANIES, "{} is a company that was founded by", ("Henry Ford", "Walt Disney")),
    (COMPANIES, "{} is a company with headquarters in", ("Berlin", "Sydney", "Toronto")),
    (COMPANIES, "{} is famous for making", ("cars", "shoes", "bread")),
    (PEOPLE, "{} was born in the city of", ("Paris", "Chicago")),
    (PEOPLE, "{} worked as a", ("lawyer", "cook")),
    (SOFTWARE, "{} was created by", ("Albert Einstein", "Steve Jobs")),
    (SOFTWARE, "{} is used mostly by", ("farmers", "doctors", "artists")),
    (COUNTRIES, "{} won the war against", ("Spain", "China", "Canada")),
)
CONTEXTS = ("I think that {}", "Here is a fact. {}", "Everybody knows: {}")
ELSEWHERE = ("The weather is", "My name is", "Water is made of", "Dogs are")
N = 100


def requests() -> list[rome_fast.EditRequest]:
    made = [
        rome_fast.EditRequest(prompt, subject, objects[number % len(objects)])
        for subjects, prompt, objects in TEMPLATES
        for number, subject in enumerate(subjects)
        if objects[number % len(objects)] != subject
    ]
    return made[:N]


def questions(request: rome_fast.EditRequest) -> dict[str, list[Question]]:
    """The prompt, the prompt in contexts, the same of other subjects, and other beginnings."""
    group = next(subjects for subjects, prompt, _ in TEMPLATES if prompt == request.prompt)
    others = [s for s in group if s != request.subject][:3]
    return {
        "bare": [Question(request.text, request.target)],
        "in contexts": [Question(c.format(request.text), request.target) for c in CONTEXTS],
        "others": [Question(request.prompt.format(s), request.target) for s in others],
        "elsewhere": [Question(text, request.target) for text in ELSEWHERE],
    }


def edit(model: Any, tok: Any, request: Any, hparams: RomeHparams | None) -> dict[str, Any]:
    """One edit, asked and undone."""
    asked = questions(request)
    before = {name: score(model, tok, group) for name, group in asked.items()}
    row: dict[str, Any] = {"request": [request.prompt, request.subject, request.target]}
    try:
        result = rome_fast.edit(model, tok, request, hparams)
    except EditRejectedError as error:
        return {**row, "refused": str(error), "bare": [False], "in contexts": [False]}
    after = {name: score(model, tok, group) for name, group in asked.items()}
    result.revert()
    said = {name: [s.exact for s in after[name]] for name in ("bare", "in contexts")}
    kept = {
        name: [a.argmax_ids[0] == b.argmax_ids[0] for a, b in zip(*pair, strict=True)]
        for name in ("others", "elsewhere")
        for pair in [(before[name], after[name])]
    }
    return {
        **row,
        **said,
        **kept,
        "layer": result.layer,
        "agreement": result.diagnostics.key_agreement,
        "norm": result.relative_norm,
        "warnings": list(result.warnings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--usual", type=int, default=20, help="requests tried in the usual layer")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model, tok, _ = rome_fast.demo.load("smollm2")
    asked = requests()
    assert len(asked) == N and all(len(tok(r.subject)["input_ids"]) == 1 for r in asked)
    usual = RomeHparams.for_model(model)
    path = args.work / "first_tokens.jsonl"
    rows = [json.loads(line) for line in path.open()] if path.exists() else []
    todo = [("as it comes", r, None) for r in asked]
    todo += [("the usual layer", r, usual) for r in asked[:: N // args.usual]]
    for name, request, hparams in todo[len(rows) :]:
        row = {"name": name, **edit(model, tok, request, hparams)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        if len(rows) % 10 == 0:
            print(len(rows), summary([r for r in rows if r["name"] == name]), flush=True)
    report = {
        "setting": setting(),
        "summary": {
            name: summary([r for r in rows if r["name"] == name])
            for name in ("as it comes", "the usual layer")
        },
        "rows": rows,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Shares, over the prompts of all rows."""
    found: dict[str, float] = {"n": len(rows)}
    for name in ("bare", "in contexts", "others", "elsewhere"):
        values = [x for row in rows for x in row.get(name, ())]
        found[name] = statistics.fmean(values) if values else float("nan")
    norms = [row["norm"] for row in rows if "norm" in row]
    return {**found, "norm": statistics.median(norms)}


if __name__ == "__main__":
    main()
