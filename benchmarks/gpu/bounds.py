"""What an H200 could do at best, from bytes and operations alone: estimates, nothing is measured.

Bytes go at the rate of a copy on the card, operations at that of its own matrix products, both as
measured; TF32 at half the rate of bfloat16. Launches, waits and what a cache holds are left out.
"""

from __future__ import annotations

from benchmarks.gpu.names import PRODUCT, REFERENCE
from benchmarks.gpu.run import Row

BYTES_PER_S = 4.3e12
FLOP_PER_S = {"bfloat16": 790e12, "tf32": 395e12}
BYTES = {"bfloat16": 2, "tf32": 4, "float32": 4}
N_ROWS = 16384
# Forwards and backwards of the part above the edited layer: the last of 20 steps has no backward.
PASSES = 39
# 22 rows from the subject's last token on.
POSITIONS = 88
# Parameters that a pass through the upper blocks and the head reads; those of the whole model.
UPPER = {
    "gpt2-xl": 30 * 12 * 1600**2 + 50257 * 1600,
    "llama-3-8b": 26 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096,
}
WHOLE = {
    "gpt2-xl": 48 * 12 * 1600**2 + 50257 * 1600,
    "llama-3-8b": 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096,
}


def sum_seconds(kind: str, d: int) -> float:
    """A triangle of the sum; float32 keys take as many operations as three products in TF32."""
    products, rate = (3, "tf32") if kind == "float32" else (1, kind)
    operations = products * N_ROWS * d * (d + 1) / FLOP_PER_S[rate]
    n_bytes = BYTES[kind] * N_ROWS * d + 2 * 4 * d * (d + 1) / 2
    return max(operations, n_bytes / BYTES_PER_S)


def sum_ratio(row: Row, kind: str) -> float:
    """Of torch's full product, as it was timed, to that."""
    return _ms(row, PRODUCT) / 1e3 / sum_seconds(kind, row["d"])


def solve_ratio(row: Row) -> float:
    """Of the dense reference, as it was timed, to the bytes of the solve."""
    return _ms(row, REFERENCE) / 1e3 / (row["bytes"] / BYTES_PER_S)


def edit_seconds(model: str, precision: str) -> float:
    """The weights are read in every pass, and three times by the forwards before and after."""
    read = PASSES * UPPER[model] + 3 * WHOLE[model]
    return BYTES[precision] * read / BYTES_PER_S


def window_seconds(model: str, precision: str, n_edits: int) -> float:
    """An edit of a window, whose edits share the reading of the weights."""
    operations = 2 * UPPER[model] * POSITIONS * PASSES / FLOP_PER_S[precision]
    return max(operations, edit_seconds(model, precision) / n_edits)


def _ms(row: Row, rival: str) -> float:
    return float(row["beside"][rival]["median_ms"])
