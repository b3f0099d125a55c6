"""Edits that are written into several layers each: MEMIT's spread, and BLUE's two layers.

    python -m benchmarks.session.policy_layers --work FOLDER --sizes 80 300 \
        --out benchmarks/results/policy-layers.json

From the lowest layer to the last each is given its share of what is still missing of the hidden
state behind the last one, as keys and states are with the layers below it edited; MEMIT's own share
is one of the layers that are left. Within a layer all edits are solved as one, softly, by the keys
of their prompts; one layer is the same with nothing else.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.real_model.values import find_values
from benchmarks.session.arena import Arena, Row, summary
from benchmarks.session.arena_policies import Problem, spread, written
from benchmarks.session.policies import joint
from rome_fast.bench.setting import setting
from rome_fast.model.activations import read_activations
from rome_fast.model.intercept import hooked
from rome_fast.model.open_model import open_model
from rome_fast.moment.collect.collection import ENOUGH_KEYS_OF_A_SEQUENCE
from rome_fast.moment.collect.ordinary import ordinary_second_moment
from rome_fast.prompt.encode import encode
from rome_fast.prompt.ids import pad_right
from rome_fast.update.softness import softness

if TYPE_CHECKING:
    from rome_fast.model.spec import DownProjection

# The last of each is the layer that the arena's values were searched at.
WAYS: dict[str, tuple[int, ...]] = {
    "one layer, 4": (4,),
    "MEMIT over 3 and 4": (3, 4),
    "MEMIT over 2, 3, 4": (2, 3, 4),
    "MEMIT over 0 to 4": (0, 1, 2, 3, 4),
    "BLUE, 2 and 4": (2, 4),
}


class Layers:
    """The facts of the arena, as several layers see them."""

    def __init__(self, arena: Arena) -> None:
        self.facts = arena.facts
        self.model, self.tok = arena.facts.model, arena.facts.tok

    @cache  # noqa: B019 - one study a process
    def at(self, layer: int) -> tuple[DownProjection, Tensor, float]:
        """A layer's matrix, its C in float64, and lam as a Session has it."""
        with open_model(self.model) as spec:
            projection = spec.down_projection(layer)
            moment = ordinary_second_moment(
                spec, self.tok, projection, keys_per_dim=ENOUGH_KEYS_OF_A_SEQUENCE
            )
            lam = softness(spec, self.tok, projection, moment)
        factor = moment.factor().double()
        return projection, factor @ factor.T, lam

    @cached_property
    def _rows(self) -> list[tuple[list[int], int]]:
        """Of every searched fact the ids of its bare prompt, and where its subject ends."""
        found = []
        for record in self.facts.records[: len(self.facts.search(300))]:
            edit = encode(self.tok, record.request, self.facts.contexts, "subject_last")
            row = edit.prompt_row
            place = int(edit.lookup_idx[row])
            found.append((edit.input_ids[row, : place + 1].tolist(), place))
        return found

    def keys(self, layer: int, n: int) -> Tensor:
        """[n, d_key] as the model is now."""
        input_ids, mask = pad_right([ids for ids, _ in self._rows[:n]])
        keys, _ = read_activations(self.model, self.at(layer)[0], input_ids, mask)
        return keys[torch.arange(n), [place for _, place in self._rows[:n]]].double()

    @torch.no_grad()
    def states(self, layer: int, n: int) -> Tensor:
        """The hidden states behind a layer, [n, d_value], as the model is now."""
        seen: list[Tensor] = []

        def keep(module: object, args: object, output: Tensor | tuple[Tensor]) -> None:
            seen.append(output if isinstance(output, Tensor) else output[0])

        input_ids, mask = pad_right([ids for ids, _ in self._rows[:n]])
        with hooked(self.model.model.layers[layer], keep):
            self.model(input_ids=input_ids, attention_mask=mask, use_cache=False)
        return seen[0][torch.arange(n), [place for _, place in self._rows[:n]]].double()

    def own_values(self, layer: int, n: int) -> Tensor:
        """v* searched at this layer, as what each adds to the matrix' output."""
        hparams = replace(self.facts.hparams, layers=(layer,))
        options = {"templates": self.facts.contexts, "window": 4}
        records, folder = self.facts.records[:n], self.facts.work / "values"
        found = find_values(self.model, self.tok, records, hparams, folder, **options)
        return torch.stack([f.value_delta.double() for f in found])

    @contextmanager
    def edited(self, way: str, n: int) -> Iterator[dict[int, float]]:
        """While open, the first ``n`` facts are edited; yields each layer's spread."""
        layers = WAYS[way]
        deltas = torch.stack([f.value_delta.double() for f in self.facts.search(n)])
        wanted = self.states(layers[-1], n) + deltas
        spreads: dict[int, float] = {}
        with ExitStack() as stack:
            for i, layer in enumerate(layers):
                projection, moment, lam = self.at(layer)
                missing = (wanted - self.states(layers[-1], n)) / (len(layers) - i)
                if way.startswith("BLUE") and i == 0:
                    missing = self.own_values(layer, n)
                keys = self.keys(layer, n)
                weight = projection.weight.detach().double()
                problem = Problem(weight, moment, keys, keys, missing)
                delta = joint(problem, lam, "prompt")
                spreads[layer] = spread(problem, delta)
                stack.enter_context(written(projection.weight, delta))
            yield spreads


def lines(arena: Arena, sizes: Sequence[int], ways: Sequence[str]) -> Iterator[Row]:
    """One a way and size."""
    study = Layers(arena)
    for n in sizes:
        for way in ways:
            with study.edited(way, n) as spreads:
                row = {"form": way, "n": n, "spreads": spreads, **arena.judged(n)}
            yield summary(row, arena.judge.records, arena.facts.records[:n])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[80, 300])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--judged", type=int, default=80)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    arena = Arena(args.work, None, args.judged, 300, args.texts)
    report: Row = {"setting": setting(), "texts": args.texts, "lines": []}
    for line in lines(arena, args.sizes, args.ways):
        report["lines"].append(line)
        print({k: v for k, v in line.items() if k != "intervals"}, flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
