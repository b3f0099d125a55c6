"""What an unchanged library computes, as hashes: single edits, a sequence, statistics, a log.

    python tests/support/golden.py             # print what this checkout computes here
    python tests/support/golden.py --record    # add it to tests/support/golden.json

Bits hold for one processor, one torch and one thread; texts, token ids and counts hold anywhere.
Only public names are used, so the same file runs at any commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers

import rome_fast
from rome_fast.info import info

RECORDED = Path(__file__).with_suffix(".json")
N_SINGLE, N_SEQUENTIAL, N_TOKENS = 40, 50, 40_000


def environment() -> str:
    """What the bits of a sum depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    said = {name.strip(): text for name, colon, text in (x.partition(": ") for x in lines) if colon}
    # Kernels, and libraries' too, are blocked for a core's cache: Zen 3 and Zen 4 have one name.
    processor = ", ".join(said[name] for name in ("model name", "cache size") if name in said)
    isa = torch.backends.cpu.get_cpu_capability()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    backend = rome_fast.ops.resolve_backend("auto", "cpu")
    simd = info()["build"]["simd"] if backend == "native" else "none"
    return f"{processor or platform.machine()}, {isa}, {versions}, {backend}, {simd}"


def computed() -> dict[str, dict[str, str]]:
    """{"bits": name -> hash, "words": name -> hash}, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            warnings.catch_warnings(),
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, ROME_FAST_CACHE=folder),
        ):
            warnings.simplefilter("ignore")
            return _computed(Path(folder))
    finally:
        torch.set_num_threads(threads)


def _computed(folder: Path) -> dict[str, dict[str, str]]:
    model, tok, facts = rome_fast.demo.load()
    # Not in bfloat16, which not all processors search in: counts of steps would differ.
    hparams = rome_fast.RomeHparams.for_model(model).replace(compute_dtype="model")
    moment = _statistics(model, tok, facts, folder / "layer.safetensors")
    loaded = rome_fast.SecondMoment.load(folder / "layer.safetensors")
    chosen = facts[:: len(facts) // N_SINGLE][:N_SINGLE]
    bits: dict[str, str] = {"statistics": moment}
    words: dict[str, str] = {}
    single = [_single(model, tok, fact, loaded, hparams) for fact in chosen]
    for field in ("u", "v", "weight", "numbers"):
        bits[f"{N_SINGLE} single edits: {field}"] = _hash([edit[field] for edit in single])
    words[f"{N_SINGLE} single edits"] = _hash([edit["words"] for edit in single])
    bits["1 edit with nothing given"] = _hash(_single(model, tok, chosen[0], None))
    sequence = facts[:: len(facts) // N_SEQUENTIAL][:N_SEQUENTIAL]
    log = folder / "edits.safetensors"
    weight, logged, said = _sequence(model, tok, sequence, loaded, hparams, log)
    bits[f"{N_SEQUENTIAL} sequential edits: weight"] = weight
    bits[f"{N_SEQUENTIAL} sequential edits: log file"] = logged
    words[f"{N_SEQUENTIAL} sequential edits"] = said
    return {"bits": bits, "words": words}


def _statistics(model: Any, tok: Any, facts: list[Any], path: Path) -> str:
    texts = [text for fact in facts for text in fact.paraphrase_prompts]
    moments = rome_fast.collect_second_moment(
        model, tok, texts, 2, tokens=N_TOKENS, source="golden", progress=False
    )
    moments[2].save(path)
    header = _header(path)["second_moment"]
    del header["info"]["versions"]
    return _hash([header, _numbers(path)])


def _single(model: Any, tok: Any, fact: Any, moment: Any, hparams: Any = None) -> dict[str, Any]:
    request = rome_fast.EditRequest(fact.prompt, fact.subject, fact.target_new)
    result = rome_fast.edit(model, tok, request, hparams, second_moment=moment)
    found = {
        "u": _of(result.update.u),
        "v": _of(result.update.v),
        "weight": _of(model.get_parameter(result.weight_name)),
        "numbers": [*result.losses, result.prob_before, result.prob_after, result.weight_norm],
        "words": [
            *(result.weight_name, result.subject_token, result.target_tokens),
            *(result.rank_before, result.rank_after, result.argmax_before, result.argmax_after),
            *(len(result.losses), result.context_templates, result.variant),
        ],
    }
    result.revert()
    return found


def _sequence(
    model: Any, tok: Any, facts: list[Any], moment: Any, hparams: Any, path: Path
) -> tuple[str, str, str]:
    requests = [rome_fast.EditRequest(f.prompt, f.subject, f.target_new) for f in facts]
    options = {"second_moment": moment, "solve": "sequential"}
    with rome_fast.Session(model, tok, hparams, **options) as session:
        results = session.edit_many(requests, progress=False)
        session.log.save(path)
        weight = model.get_parameter(results[0].weight_name)
        said = _hash([[r.success, r.argmax_after, r.edit_id, len(r.losses)] for r in results])
        header = _header(path)["edit_log"]
        del header["base"]["name"]  # a path
        for edit in header["edits"]:
            del edit["time"]
        return _of(weight), _hash([header, _numbers(path)]), said


def _header(path: Path) -> dict[str, Any]:
    """The JSON of a safetensors file's metadata, without its checksum, which covers the time."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(size))["__metadata__"]
    header = {name: json.loads(text) for name, text in metadata.items()}
    for fields in header.values():
        del fields["sha256"]
    return header


def _numbers(path: Path) -> str:
    """Of the bytes behind the header."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        file.seek(8 + size)
        return hashlib.sha256(file.read()).hexdigest()


def _of(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="add it to tests/support/golden.json")
    here = computed()
    if parser.parse_args().record:
        known = json.loads(RECORDED.read_text()) if RECORDED.exists() else {"bits": {}}
        known["bits"][environment()] = here["bits"]
        known["words"] = here["words"]
        RECORDED.write_text(json.dumps(known, indent=1) + "\n")
    print(environment(), json.dumps(here, indent=1), sep="\n")


if __name__ == "__main__":
    main()
