"""The package works where nothing is installed but what it requires."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# A name that is None is neither imported nor found: as if it were not installed.
EDIT = """
import sys

for name in {refused!r}:
    sys.modules[name] = None

import rome_fast
from rome_fast.cli import main

model, tok, facts = rome_fast.demo.load()
request = rome_fast.EditRequest(facts[0].prompt, facts[0].subject, facts[0].target_new)
with rome_fast.trial(model, tok, request, second_moment="identity") as result:
    print("edited:", result.success)
sys.argv = ["rome-fast", "--help"]
main()
"""


def required(package, extras=frozenset()):
    """The distributions that a package needs, with all that these need; itself too."""
    found, open_ends = set(), [(package, extras)]
    while open_ends:
        name, extras = open_ends.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        for line in importlib.metadata.requires(name) or []:
            asked = Requirement(line)
            wanted = [{"extra": extra} for extra in ("", *extras)]
            if asked.marker is None or any(asked.marker.evaluate(e) for e in wanted):
                open_ends.append((canonicalize_name(asked.name), frozenset(asked.extras)))
    return {name for name, _ in found}


def refused():
    """The top-level modules that come with nothing that is required."""
    kept = required("rome-fast")
    modules = importlib.metadata.packages_distributions().items()
    away = [m for m, names in modules if not kept & {canonicalize_name(n) for n in names}]
    return sorted(name for name in away if name.isidentifier())


def test_it_edits_where_only_required_packages_are():
    away = refused()
    assert {"datasets", "peft", "pytest", "bitsandbytes"} <= set(away)
    assert not {"torch", "transformers", "rome_fast", "jinja2", "numpy"} & set(away)
    command = [sys.executable, "-c", EDIT.format(refused=away)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "edited: True" in done.stdout and "Usage: rome-fast" in done.stdout
