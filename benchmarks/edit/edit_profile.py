"""Where the seconds of one warm edit go, by operator and shape, beside the machine's best product.

    python -m benchmarks.edit.edit_profile --out benchmarks/results/edit-profile.json

The edit is bench_edit.py's: the 124 M GPT-2 shape, layer 6, 20 steps. torch's profiler counts what
an operator takes itself, without what it calls; it slows the edit by a few per cent.
"""

import argparse
import json
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import rome_fast
from benchmarks.edit.bench_edit import case_of, random_gpt2
from rome_fast.bench.floor import gemm_rate
from rome_fast.bench.own import RomeFast
from rome_fast.bench.setting import setting

N_ROWS = 24
MATRIX_OPERANDS = {"aten::mm": (0, 1), "aten::addmm": (1, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    case = case_of(*random_gpt2(rome_fast.demo.load()[1]), layer=6, v_lr=0.02)
    RomeFast().edit(case)  # warms up
    plain = RomeFast().edit(case).seconds
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace:
        profiled = RomeFast().edit(case).seconds
    events = trace.key_averages(group_by_input_shape=True)
    events = sorted(events, key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events) / 1e6
    rows = [row(event, total) for event in events[:N_ROWS]]
    report = {
        "setting": setting(),
        "seconds": {phase: round(s, 4) for phase, s in plain.items()},
        "seconds_profiled": round(profiled["total"], 4),
        "share_of_rows": round(sum(r["share"] for r in rows), 3),
        "results": rows,
    }
    for r in rows:
        print(f"{r['share']:6.1%} {r['calls']:5} {r['operator']:40} {r['shapes']}", end=" ")
        print(f"{r['gflop_per_s']} of {r['machine_gflop_per_s']}" if "gflop_per_s" in r else "")
    out.write_text(json.dumps(report, indent=1) + "\n")


def row(event, total):
    """One operator on one set of shapes; products say their rate and torch's best one."""
    shapes = [shape for shape in event.input_shapes if shape]
    seconds = event.self_cpu_time_total / 1e6
    facts = {
        "operator": event.key,
        "shapes": str(shapes),
        "calls": event.count,
        "seconds": round(seconds, 4),
        "share": round(seconds / total, 4),
    }
    if event.key in MATRIX_OPERANDS:
        left, right = (event.input_shapes[i] for i in MATRIX_OPERANDS[event.key])
        flop = 2 * left[0] * left[1] * right[1] * event.count
        best = gemm_rate(*left, right[1], torch.float32)
        facts["gflop_per_s"] = round(flop / seconds / 1e9, 1)
        facts["machine_gflop_per_s"] = round(best / 1e9, 1)
    return facts


if __name__ == "__main__":
    main()
