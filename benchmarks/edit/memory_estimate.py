"""Compares the estimate of an edit's memory with its peak, measured in a process of its own.

    python -m benchmarks.edit.memory_estimate --out benchmarks/results/memory-estimate.json

The embedded model and the 124 M GPT-2 shape of random weights, with short and long prompts, in
float32 and bfloat16. A first edit of a miniature model brings what libraries load and keep once;
the peak is the resident memory that the edit takes on top, with C's sum and its factor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

import rome_fast
from benchmarks.edit.bench_edit import case_of, random_gpt2
from benchmarks.support.results import ROOT, write
from rome_fast.bench.case import Case
from rome_fast.bench.own import RomeFast, factored
from rome_fast.bench.peak import peak_mib
from rome_fast.bench.setting import setting
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.encode import encode
from rome_fast.value.memory import estimate

WORDS = "The story of the old house near the river is long, and few people know all of it. "
CASES = {
    "embedded model, layer 2 of 6": {"layer": 2, "embedded": True},
    "gpt2-124m, layer 6 of 12": {},
    "layer 0": {"layer": 0},
    "layer 11": {"layer": 11},
    "layer 6, C = I": {"identity": True},
    "layer 6, bfloat16": {"dtype": torch.bfloat16},
    "layer 6, 45 sentences before the subject, 5 contexts": {"n_sentences": 45, "n_contexts": 5},
    "the same, bfloat16": {"n_sentences": 45, "n_contexts": 5, "dtype": torch.bfloat16},
    "45 sentences after the subject, 5 contexts": {"n_after": 45, "n_contexts": 5},
}


def built(
    layer: int = 6,
    embedded: bool = False,
    identity: bool = False,
    dtype: torch.dtype = torch.float32,
    n_sentences: int = 0,
    n_after: int = 0,
    n_contexts: int = 21,
) -> Case:
    """bench_edit.py's edit, changed."""
    model, tok, _ = rome_fast.demo.load()
    if not embedded:
        model, tok = random_gpt2(tok)
    case = case_of(model.to(dtype), tok, layer, v_lr=0.02)
    prompt = n_sentences * WORDS + case.request.prompt
    if n_after:
        prompt = "{} was here. " + n_after * WORDS + "It is"
    request = rome_fast.EditRequest(prompt, case.request.subject, case.request.target)
    contexts = case.context_templates[:n_contexts]
    moment = None if identity else case.second_moment
    return replace(case, request=request, context_templates=contexts, second_moment=moment)


def row_of(name: str) -> dict[str, Any]:
    """Estimate and peak; to be run in a fresh process."""
    case = built(**CASES[name])
    spec = ModelSpec.of(case.model)
    tokens = encode(case.tok, case.request, case.context_templates, case.hparams.fact_token)
    projection = spec.down_projection(case.hparams.layer)
    said = estimate(spec, projection, [tokens], identity=case.second_moment is None)
    sizes = {"n_positions": 1024, "n_embd": 8, "n_layer": 12, "n_head": 1}
    small = GPT2LMHeadModel(GPT2Config(vocab_size=len(case.tok), **sizes)).eval()
    moment = None if case.second_moment is None else torch.eye(32)
    RomeFast().edit(replace(case, model=small.to(case.model.dtype), second_moment=moment))
    factored.cache_clear()
    peak = peak_mib(lambda: RomeFast().edit(case))
    return {
        "name": name,
        "estimate_mib": round(said.total / 2**20),
        "peak_mib": peak,
        "ratio": round(said.total / 2**20 / peak, 2),
        "parts_mib": {part: round(n / 2**20, 1) for part, n in asdict(said).items()},
    }


def in_child(name: str) -> dict[str, Any]:
    """``row_of`` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.edit.memory_estimate", "--only", name]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(child.stderr)
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=None, help="print the row of this case")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(row_of(args.only)))
        return
    table = Table("edit", "estimate, MiB", "peak, MiB", "ratio", box=box.SIMPLE_HEAD)
    rows = [in_child(name) for name in CASES]
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("name", "estimate_mib", "peak_mib", "ratio")))
    Console(width=100).print(table)
    if args.out:
        write(args.out, {"setting": setting()}, rows, "results")


if __name__ == "__main__":
    main()
