"""The tables of docs/scale.md: what a collection costs for models that do not fit on a laptop.

    python -m benchmarks.moment.scale_table

CPU rates are those measured in benchmarks/results/collect-cpu.json and second-moment-cpu.json. GPU
rates are not measured: they are a share of the data sheet's peak, said in the output.
"""

import json
from dataclasses import dataclass

from benchmarks.support.results import RESULTS
from rome_fast.moment.collect.collection import ENOUGH_KEYS

# H100 SXM, dense, TFLOP/s; the share of it that is assumed to be reached.
FORWARD = 989e12 * 0.4  # bfloat16
ADD = 67e12 * 0.6  # float32 outside of tensor cores, both triangles
FACTOR = 67e12 * 0.3  # float64
REDUCE = 50e9  # bytes per second of an all-reduce between machines


@dataclass(frozen=True)
class Shape:
    """A decoder as far as its keys need it; ``layer`` is the one of its preset or a fifth up."""

    name: str
    layer: int
    d_key: int
    block: int  # parameters of one block
    down: int  # of them in the down-projection

    @property
    def flop_per_token(self) -> float:
        """Of a forward that stops at the layer's key, attention scores left out."""
        return 2.0 * ((self.layer + 1) * self.block - self.down)


def gated(d: int, kv: int, d_key: int) -> tuple[int, int]:
    return 2 * d * d + 2 * d * kv + 3 * d * d_key, d * d_key


SHAPES = [
    Shape("GPT-2 XL", 17, 6400, 12 * 1600**2, 1600 * 6400),
    Shape("GPT-J 6B", 5, 16384, 12 * 4096**2, 4096 * 16384),
    Shape("Llama-3-8B", 5, 14336, *gated(4096, 1024, 14336)),
    Shape("Llama-3-70B", 12, 28672, *gated(8192, 1024, 28672)),
]


def seconds_on_gpus(shape: Shape, gpus: int) -> float:
    """Forward and sum shared, factorisation and reduction not."""
    d, tokens = shape.d_key, ENOUGH_KEYS * shape.d_key
    shared = tokens * (shape.flop_per_token / FORWARD + 2 * d * d / ADD)
    alone = d**3 / 3 / FACTOR
    reduce = 0 if gpus == 1 else 2 * 4 * d * d / REDUCE
    return shared / gpus + alone + reduce


def cpu_rates() -> tuple[float, float]:
    """FLOP/s of the forward and of the sum (its triangle), as measured on two cores."""
    rows = json.loads((RESULTS / "collect-cpu.json").read_text())["results"]
    [ours] = [row for row in rows if row["impl"] == "rome_fast"]
    rows = json.loads((RESULTS / "second-moment-cpu.json").read_text())["results"]
    [add] = [
        row for row in rows if (row["impl"], row.get("kind"), row["d"]) == ("native", "fp32", 6400)
    ]
    small = Shape("GPT-2", 5, 3072, 12 * 768**2, 768 * 3072)
    add_rate = add["gflop_per_s"] * 1e9
    forward_seconds = 1 / ours["tokens_per_s"] - small.d_key**2 / add_rate
    return small.flop_per_token / forward_seconds, add_rate


def main() -> None:
    forward, add = cpu_rates()
    print("| model | d_key | keys | GFLOP a key: forward, sum | sum fp32 | factor fp64 (peak) |")
    print("|---|---|---|---|---|---|")
    for s in SHAPES:
        d = s.d_key
        print(
            f"| {s.name}, layer {s.layer} | {d:,} | {ENOUGH_KEYS * d / 1e3:.0f} k "
            f"| {s.flop_per_token / 1e9:.1f}, {d * d / 1e9:.2f} "
            f"| {4 * d * d / 1e9:.2f} GB | {16 * d * d / 1e9:.1f} GB |"
        )
    print("\n| model | two CPU cores | 1 GPU | 8 GPUs | 64 GPUs |")
    print("|---|---|---|---|---|")
    for s in SHAPES:
        tokens = ENOUGH_KEYS * s.d_key
        cpu = tokens * (s.flop_per_token / forward + s.d_key**2 / add)
        gpus = " | ".join(f"{seconds_on_gpus(s, n):.1f} s" for n in (1, 8, 64))
        print(f"| {s.name} | {cpu / 60:.0f} min | {gpus} |")
    print(f"\nCPU: forward {forward / 1e9:.0f} GFLOP/s, sum {add / 1e9:.0f} GFLOP/s.")


if __name__ == "__main__":
    main()
