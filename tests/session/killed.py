"""Children that edit until they are killed, and what their journals then hold.

    python killed.py FOLDER RUNS SEED

A child says which edit was acknowledged, and the weight's fingerprint, on a pipe. Its parent kills
it at a random moment, resumes its journal, and prints what it found as JSON.
"""

import copy
import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from helpers import CONTEXTS
from tiny import tiny_gpt2

from rome_fast import EditLog, HealthCheck, RomeHparams, Session
from rome_fast.errors import SessionWarning
from rome_fast.undo import fingerprint

SUBJECTS = ("Steve Jobs", "Eiffel Tower", "Ada Lovelace", "Marie Curie", "Niels Bohr")
HPARAMS = RomeHparams(layers=[1], v_num_grad_steps=2, v_lr=0.3)


def weight_of(model):
    return model.transformer.h[1].mlp.c_proj.weight


def edit_for_ever(model, tok, path, pipe):
    options = {"second_moment": "identity", "context_templates": CONTEXTS}
    session = Session(model, tok, HPARAMS, journal=path, health=HealthCheck(every=0), **options)
    os.write(pipe, b"open\n")
    chosen = random.Random(str(path))
    while True:
        number = chosen.randrange(10**6)
        subject = chosen.choice(SUBJECTS)
        prompt = f"The number {number} is {{}}"
        session.edit({"prompt": prompt, "subject": subject, "target_new": "capital"})
        if number % 5 == 0:
            session.undo()
        ids = [edit.edit_id for edit in session.log.kept()]
        told = {"last": session.log.next_id - 1, "kept": ids}
        os.write(pipe, json.dumps({**told, "bits": fingerprint(weight_of(model))}).encode() + b"\n")


def run_and_kill(pristine, path, delay):
    """What the child acknowledged, in order."""
    model, tok = copy.deepcopy(pristine)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        edit_for_ever(model, tok, path, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.readline() == "open\n"
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # A line that was being written when the child died is no acknowledgement.
        return [json.loads(line) for line in pipe if line.endswith("\n")]


def resumed(pristine, path, told):
    """Resume the journal, and check it against what was acknowledged."""
    model, tok = copy.deepcopy(pristine)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", SessionWarning)
        session = Session.resume(path, model, tok, second_moment="identity")
    with session:
        log = session.log
        assert not told or told[-1]["last"] <= log.next_id - 1 <= told[-1]["last"] + 1
        other, _ = copy.deepcopy(pristine)
        log.apply(other)
        assert torch.equal(weight_of(model), weight_of(other))
        kept = [edit.edit_id for edit in log.kept()]
        same = [line for line in told if line["last"] == log.next_id - 1 and line["kept"] == kept]
        for line in same:
            assert line["bits"] == fingerprint(weight_of(model))
        result = session.edit({"prompt": "It is {}", "subject": "Marie Curie", "target": "near"})
        assert result.edit_id == log.next_id
    reread = EditLog.load(path)
    assert [edit.edit_id for edit in reread.edits] == [e.edit_id for e in log.edits] + [
        result.edit_id
    ]
    torn = sum("torn" in str(warning.message) for warning in seen)
    return {"acknowledged": len(told), "found": len(log.edits), "same": len(same), "torn": torn}


def main(folder, runs, seed):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pristine, chosen = tiny_gpt2(), random.Random(seed)
    found = []
    for number in range(runs):
        path = Path(folder) / f"{number}.journal"
        told = run_and_kill(pristine, path, chosen.uniform(0, 0.3))
        found.append(resumed(pristine, path, told))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
