"""A long sequence of edits that keeps the model well, survives a crash, and becomes an adapter.

python examples/long_sequence.py [FOLDER]

Run it twice: the second run finds the journal of the first and has nothing left to edit.
"""

import sys
from pathlib import Path

import rome_fast

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
journal = folder / "edits.journal"
model, tok, facts = rome_fast.demo.load()
requests = [rome_fast.EditRequest(f.prompt, f.subject, f.target_new) for f in facts[::60]]

if journal.exists():
    session = rome_fast.Session.resume(journal, model, tok)
else:
    check = rome_fast.HealthCheck(
        every=10,
        prompts=[near.prompt for f in facts[30::90] for near in f.neighborhood_prompts],
        on_unhealthy="stop",
    )
    # The weight: an adapter holds no neurons.
    session = rome_fast.Session(model, tok, form="weight", journal=journal, health=check)

with session:
    done = {edit.request for edit in session.log.holding()}
    for result in session.stream([request for request in requests if request not in done]):
        if not result.success:
            print(result)
    for look in session.checks:
        print(look)
    log = session.log
    session.save_checks(folder / "health.json")

log.save(folder / "edits.safetensors")
print(log.show(last=3))
print(f"{len(log)} of {len(requests)} facts are edited")
print(log.to_lora(folder / "adapter"))
