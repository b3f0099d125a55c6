"""Locate a fact, try small, then widen: which layer of this model should be edited?

python examples/find_the_layer.py [FOLDER]
"""

import sys
from pathlib import Path

import rome_fast

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
model, tok, facts = rome_fast.demo.load()
records = [fact.record() for fact in facts[::150]]

# Locate: the states that bring the answer back when the subject is blurred with noise.
trace = rome_fast.locate(model, tok, "Ray Charles plays the", "Ray Charles")
print(trace)
trace.save(folder / "trace.json")  # trace.plot("trace.png") draws it, with the extra [plot]

# Try small: a few trial edits in each layer, all of them taken back.
plan = rome_fast.suggest_layer(model, tok, records[::3], layers=range(4))
print(plan)
plan.hparams.save(folder / "plan.yaml")

# Widen: all records with what was found.
evaluation = rome_fast.evaluate(model, tok, records, hparams=plan.hparams, generate_tokens=0)
efficacy = evaluation.metrics["after"]["rewrite_exact"]
print(f"layer {plan.hparams.layer}: {efficacy.mean:.0%} of {efficacy.n} edits hold")
