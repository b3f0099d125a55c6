"""Children that edit until they are killed, and what their journals then hold.

    python killed.py FOLDER RUNS SEED WAY

A way is a form of edits, or "consolidate": edits of the weight that are bettered on the way. After
each operation a child writes to a pipe which edits hold, and the fingerprint of the weight and of
what stands beside it.
Its parent kills it at a random moment, resumes its journal, which must hold exactly that or one
operation more, and prints the findings as JSON.
"""

import copy
import itertools
import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from helpers import CONTEXTS
from tiny import tiny_gpt2

from rome_fast import EditLog, HealthCheck, RomeHparams, Session, edit
from rome_fast.beside.module import NAME
from rome_fast.errors import SessionWarning
from rome_fast.model.hashes import fingerprint

SUBJECTS = ("Steve Jobs", "Eiffel Tower", "Ada Lovelace", "Marie Curie", "Niels Bohr")
HPARAMS = RomeHparams(layers=[1], v_num_grad_steps=2, v_lr=0.3)


def weight_of(model):
    return model.transformer.h[1].mlp.c_proj.weight


class SlowDisk:
    """A file that takes a record piece by piece, so that some records are torn."""

    def __init__(self, file):
        self._file = file

    def write(self, data):
        time.sleep(0.002)
        return self._file.write(data[:1000])

    def __getattr__(self, name):
        return getattr(self._file, name)


def bits_of(model):
    beside = [t for name, t in model.named_buffers() if NAME in name]
    return fingerprint(weight_of(model), *beside)


def operation(n, way):
    """What is done after ``n`` other operations."""
    steps = ("edit", "edit", "consolidate", "undo")
    return steps[n % 4] if way == "consolidate" else ("edit", "edit", "undo")[n % 3]


def options_of(way):
    form = "weight" if way == "consolidate" else way
    plain = {"form": form, "context_templates": CONTEXTS}
    return {**plain, "second_moment": "identity"} if form == "weight" else plain


def edit_for_ever(model, tok, path, pipe, way):
    options = options_of(way)
    session = Session(model, tok, HPARAMS, journal=path, health=HealthCheck(every=0), **options)
    session._ledger._journal._file = SlowDisk(session._ledger._journal._file)
    os.write(pipe, b"open\n")
    for n in itertools.count():
        if operation(n, way) == "undo":
            session.undo()
        elif operation(n, way) == "consolidate":
            session.consolidate(steps=1, progress=False)
        else:
            subject, prompt = SUBJECTS[n % len(SUBJECTS)], f"The number {n} is {{}}"
            session.edit({"prompt": prompt, "subject": subject, "target_new": "capital"})
        told = [*state_of(session.log), bits_of(model)]
        os.write(pipe, json.dumps(told).encode() + b"\n")


def state_of(log):
    return [log.next_id - 1, [edit.edit_id for edit in log.kept()]]


def run_and_kill(pristine, path, chosen, way):
    """Run a child and kill it; returns what it acknowledged, in order."""
    model, tok = copy.deepcopy(pristine)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        edit_for_ever(model, tok, path, writing, way)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.readline() == "open\n"
        lines = [pipe.readline() for _ in range(chosen.randrange(7))]
        if chosen.random() < 0.5:
            time.sleep(chosen.uniform(0, 0.2))
        else:  # while a record is written, or soon after
            size = path.stat().st_size
            while path.stat().st_size == size:
                time.sleep(0.0005)
            time.sleep(chosen.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # A line that was cut off when the child died does not count.
        return [json.loads(line) for line in [*lines, *pipe] if line.endswith("\n")]


def one_ahead(last, kept, done):
    """The state after one more operation."""
    after = {"undo": [last, kept[:-1]], "edit": [last + 1, [*kept, last + 1]]}
    return after.get(done, [last, kept])


def resumed(pristine, path, told, way):
    """Resume the journal, and check it against what was acknowledged."""
    model, tok = copy.deepcopy(pristine)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", SessionWarning)
        session = Session.resume(path, model, tok)
    torn = sum("torn" in str(warning.message) for warning in seen)
    with session:
        log = session.log
        last, kept, bits = told[-1] if told else (0, [], bits_of(pristine[0]))
        same = state_of(log) == [last, kept] and bits == bits_of(model)
        ahead = one_ahead(last, kept, operation(len(told), way))
        assert same or (state_of(log) == ahead and bits != bits_of(model))
        # Only the record of an operation that was not acknowledged may be torn.
        assert torn <= same
        other, _ = copy.deepcopy(pristine)
        log.apply(other)
        assert bits_of(model) == bits_of(other)
        result = session.edit({"prompt": "It is {}", "subject": "Marie Curie", "target": "near"})
        assert result.edit_id == log.next_id
    reread = EditLog.load(path)
    assert [edit.edit_id for edit in reread.edits] == [e.edit_id for e in log.edits] + [
        result.edit_id
    ]
    return {"acknowledged": len(told), "same": same, "torn": torn}


def main(folder, runs, seed, way):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pristine, chosen = tiny_gpt2(), random.Random(seed)
    # What is read once for a model is read here, not by a child that has no time for it.
    request = {"prompt": "It is {}", "subject": "Marie Curie", "target": "near"}
    edit(*copy.deepcopy(pristine), request, HPARAMS, **options_of(way))
    found = []
    for number in range(runs):
        path = Path(folder) / f"{number}.journal"
        told = run_and_kill(pristine, path, chosen, way)
        found.append(resumed(pristine, path, told, way))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
