"""How far each way of summing C is from the exact sum, against the number of keys.

    python -m benchmarks.moment.moment_errors --out benchmarks/results/moment-errors.json

Keys are heavy-tailed (Student t, 3 degrees of freedom) with a mean and with columns of very unequal
scale, as those of a transformer are. The reference is a float64 sum whose rounding is compensated.
"""

import argparse
import json
import math
from pathlib import Path

import torch

from rome_fast.bench.setting import setting
from rome_fast.moment.second_moment import SecondMoment

D_KEY, ROWS = 256, 512
ADDS = (1, 10, 100, 1_000, 10_000)
WAYS = {
    "float32": {"dtype": torch.float32},
    "float32, compensated": {"dtype": torch.float32, "compensated": True},
    "float64": {"dtype": torch.float64},
}


class Keys:
    """An endless stream of [512, 256] float32 keys, seeded."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.scale = torch.randn(D_KEY, generator=self.generator).exp()
        self.mean = 0.3 + 0.3 * torch.randn(D_KEY, generator=self.generator)

    def draw(self):
        normal = torch.randn(4, ROWS, D_KEY, generator=self.generator)
        student = normal[0] / (normal[1:].square().sum(0) / 3).sqrt()
        return (self.mean + student) * self.scale


class ExactSum:
    """sum of K^T K in float64 with what each addition rounds off kept apart (Knuth's two-sum)."""

    def __init__(self):
        self.sum = torch.zeros(D_KEY, D_KEY, dtype=torch.float64)
        self.lost = torch.zeros_like(self.sum)

    def add(self, keys):
        product = keys.double().T @ keys.double()
        total = self.sum + product
        rounded = total - self.sum
        self.lost += (self.sum - (total - rounded)) + (product - rounded)
        self.sum = total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    keys, exact = Keys(), ExactSum()
    moments = {name: SecondMoment(D_KEY, **options) for name, options in WAYS.items()}
    rows = []
    for adds in range(1, max(ADDS) + 1):
        batch = keys.draw()
        exact.add(batch)
        for moment in moments.values():
            moment.add(batch)
        if adds in ADDS:
            row = {"adds": adds, "keys": adds * ROWS}
            for name, moment in moments.items():
                error = (moment.exact_sum() - exact.sum - exact.lost).tril()
                row[name] = float(f"{float(error.norm() / exact.sum.tril().norm()):.2e}")
                assert math.isfinite(row[name])
            rows.append(row)
            print(row, flush=True)
    report = {"setting": setting(), "d_key": D_KEY, "rows_an_add": ROWS, "errors": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
