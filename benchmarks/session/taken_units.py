"""What a model loses where edits take units over, instead of making its MLP wider.

    python -m benchmarks.session.taken_units --out benchmarks/results/taken-units.json

The units of the edited layer that contribute least to ordinary text are silenced: so many edits
would have room. Perplexity and KL are of held text.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch

import rome_fast
from benchmarks.session.arena import held_texts
from rome_fast.bench.setting import setting
from rome_fast.evaluate.drift import Drift
from rome_fast.hparams import defaults_for
from rome_fast.model.open_model import open_model
from rome_fast.moment.collect.ordinary import ordinary_second_moment

TAKEN = (1, 16, 64, 128, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model, tok, _ = rome_fast.demo.load("smollm2")
    texts = [tok.decode(ids) for ids in held_texts(tok)[: args.texts]]
    drift = Drift.baseline(model, tok, texts)
    unedited = drift.measure(model)["perplexity"]
    with open_model(model) as spec, torch.no_grad():
        layer = defaults_for(spec)[0].layer
        projection = spec.down_projection(layer)
        moment = ordinary_second_moment(spec, tok, projection, keys_per_dim=32).moment()
        weight = projection.weight
        written = moment.diagonal().float() * weight.square().sum(0)
        order, before, rows = written.argsort(), weight.clone(), []
        for n in TAKEN:
            weight[:, order[:n]] = 0
            found = drift.measure(model)
            share = float(written[order[:n]].sum() / written.sum())
            rows.append({"taken": n, "perplexity": found["perplexity"] / unedited})
            rows[-1] |= {"kl": found["kl"], "written": share}
            print(rows[-1], flush=True)
            weight.copy_(before)
    report = {"setting": setting(), "layer": layer, "units": projection.d_key, "rows": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
