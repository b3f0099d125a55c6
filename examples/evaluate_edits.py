"""Edit some facts, each alone, then one after the other, and measure what became of the model.

python examples/evaluate_edits.py [FOLDER]

Any file that `load_records` reads will do instead of the embedded model's facts: CounterFact, zsRE,
KnowEdit, JSONL, CSV.
"""

import sys
from pathlib import Path

import rome_fast

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
model, tok, facts = rome_fast.demo.load()
records = rome_fast.load_records([fact.record() for fact in facts[::400]])
# Text that has nothing to do with the edits: the model should say it as before.
held_texts = [f"{fact.paraphrase_prompts[0]} {fact.target.strip()}." for fact in facts[7::300]]

for mode in ("single", "sequential"):
    evaluation = rome_fast.evaluate(
        model, tok, records, mode=mode, held_texts=held_texts, generate_tokens=8
    )
    print(f"\n{mode}: {len(evaluation.cases)} edits, {len(evaluation.failed)} refused")
    for name, meaning in (
        ("ES", "edited prompts that prefer the new answer"),
        ("PS", "paraphrases that do"),
        ("NS", "neighbours that keep theirs"),
    ):
        was, now = (evaluation.metrics[stage][name] for stage in ("before", "after"))
        print(
            f"  {name}  {was.mean:.2f} -> {now.mean:.2f} ({now.low:.2f}-{now.high:.2f})  {meaning}"
        )
    drift = evaluation.drift
    print(f"  perplexity {drift['before']['perplexity']:.2f} -> {drift['after']['perplexity']:.2f}")
    evaluation.save(folder / f"{mode}.json")  # every setting, case and text
