"""How a subject is told from everything else: detectors of edits that only fire for it, compared.

    python -m benchmarks.session.detectors --work FOLDER --n 300 --judged 150 \
        --out benchmarks/results/detectors.json

No value is searched: what is asked is only at which tokens a detector answers, of the subject's own
prompts, of paraphrases, of neighbours that name no edited subject, of its last word behind other
texts, and of held text. All are compared where as many neighbours' prompts are reached.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import normalize as unit

from benchmarks.session.arena import held_texts
from benchmarks.session.arena_facts import ArenaFacts
from rome_fast.bench.setting import setting
from rome_fast.beside.directions import directions
from rome_fast.beside.entry import entry_of
from rome_fast.model.activations import read_activations
from rome_fast.model.open_model import open_model
from rome_fast.prompt.ids import pad_right, text_ids

if TYPE_CHECKING:
    from torch import Tensor

Detector = Callable[["Tensor"], "Tensor"]  # h [t, d_model] -> [t, n]
REACHED = (0.01, 0.02, 0.05)  # of the neighbours' prompts


def detectors(facts: ArenaFacts, n: int) -> dict[str, Detector]:
    """By what they compare; each is near 1 at the mean of the subject's contexts."""
    signatures = [read.signature for read in facts.read(n)]
    own = [signature.own.double() for signature in signatures]
    means = torch.stack([rows.mean(0) for rows in own])
    spread = torch.cat([rows - mean for rows, mean in zip(own, means, strict=True)])
    contexts, subjects = spread.T @ spread / len(spread), means.T @ means / n
    text, units = facts.entry.moment.double(), facts.units
    keys = torch.stack([units.keys(rows.float()).mean(0) for rows in own]).double()
    c = facts.moment.moment().double()
    c.diagonal().add_(facts.moment.ridge() * c.diagonal().mean())
    w = _linear(directions(facts.entry, own, ~torch.eye(n, dtype=torch.bool)))
    p = _linear(torch.stack([signature.apart for signature in signatures]))
    h, k = _cosine(text, means), _cosine(c, keys)
    within = _cosine(text + 30 * contexts, means)
    found = {
        "cosine of h": h,
        "cosine of h, squared, times p.h": lambda x: h(x).square() * p(x),
        "cosine of the key": lambda x: k(units.keys(x)),
        "w.h": w,
        "p.h": p,
        "w.h times p.h": lambda x: w(x) * p(x),
        "w.h times the cosine of h": lambda x: w(x) * h(x),
        "w.h times the cosine of the key": lambda x: w(x) * k(units.keys(x)),
        "cosine within contexts": within,
        "cosine within contexts and subjects": _cosine(text + 30 * contexts + subjects, means),
        "cosine within contexts, where p.h > 0.5": lambda x: within(x) * (p(x) > 0.5),
    }
    for weight in (3, 10, 100):
        found[f"cosine within contexts, weight {weight}"] = _cosine(text + weight * contexts, means)
    return found


def _linear(rows: Tensor) -> Detector:
    narrow = rows.float()
    return lambda h: (h @ narrow.T).clamp(min=0)


def _cosine(moment: Tensor, centres: Tensor) -> Detector:
    """In the coordinates in which ``moment`` is the identity."""
    factor = torch.linalg.cholesky(moment)
    eye = torch.eye(len(factor), dtype=torch.float64)
    whitener = torch.linalg.solve_triangular(factor, eye, upper=False)
    at, whitener = unit(centres @ whitener.T, dim=-1).float(), whitener.float()
    return lambda h: (unit(h @ whitener.T, dim=-1) @ at.T).clamp(min=0)


class Asked:
    """h at all tokens of the prompts that detectors are asked about, by group."""

    def __init__(self, facts: ArenaFacts, n: int, judged: int) -> None:
        self._facts = facts
        texts = held_texts(facts.tok)
        openings = [facts.tok.decode(ids[:length]) for length, ids in enumerate(texts[:12], 1)]
        names = [record.request.subject.casefold() for record in facts.records[:n]]
        self.prompts: dict[str, list[tuple[int, Tensor]]] = {}
        for i, record in enumerate(facts.records[:judged]):
            groups = {"own prompt": [record.request.text], "paraphrases": list(record.paraphrases)}
            groups["neighbours"] = [
                q.prompt
                for q in record.neighborhood
                if not any(name in q.prompt.casefold() for name in names)
            ]
            *before, last = record.request.subject.split()
            groups["last word elsewhere"] = [f"{text} {last}" for text in openings if before]
            for group, prompts in groups.items():
                for h in self._h([text_ids(facts.tok, prompt) for prompt in prompts]):
                    self.prompts.setdefault(group, []).append((i, h))
        self.text = torch.cat(list(self._h(texts)))

    def _h(self, rows: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        entry = entry_of(self._facts.units)
        for start in range(0, len(rows), 16):
            ids, mask = pad_right(rows[start : start + 16])
            found, _ = read_activations(self._facts.model, entry, ids, mask)
            yield from (h[used] for h, used in zip(found, mask.bool(), strict=True))

    @torch.no_grad()
    def row(self, detector: Detector) -> dict[str, Any]:
        """Shares that a detector reaches, where so many neighbours' prompts are."""
        highest: dict[str, list[float]] = {}
        for group, prompts in self.prompts.items():
            for i, h in prompts:
                best, number = detector(h).max(-1)
                mine = best if group == "neighbours" else best[number == i]
                highest.setdefault(group, []).append(float(mine.max()) if len(mine) else 0.0)
        text = torch.cat([detector(h).max(-1).values for h in self.text.split(512)])
        found: dict[str, Any] = {}
        loud = torch.tensor(highest["neighbours"])
        for share in REACHED:
            at = float(loud.quantile(1 - share))
            reached = {group: _above(values, at) for group, values in highest.items()}
            found[str(share)] = {"at": at, **reached, "text": _above(text.tolist(), at)}
        return found


def _above(values: Sequence[float], at: float) -> float:
    return statistics.fmean(value > at for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--judged", type=int, default=150)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    facts = ArenaFacts(args.work, args.layer)
    with open_model(facts.model):
        asked = Asked(facts, args.n, args.judged)
        rows = {}
        for name, detector in detectors(facts, args.n).items():
            rows[name] = asked.row(detector)
            print(name, {k: {a: round(b, 4) for a, b in v.items()} for k, v in rows[name].items()})
    about = {"layer": facts.hparams.layer, "n": args.n, "judged": args.judged}
    report = {"setting": setting(), **about, "detectors": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
