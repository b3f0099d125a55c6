"""The parts of the program, the most telling ones first, and what time each is given."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.run import Run

# The seconds of all parts are for a run that takes this long; another one scales them.
TOTAL_SECONDS = 570
# What a part is given to end by itself before it is ended.
GRACE_SECONDS = 4


@dataclass(frozen=True)
class Part:
    """A step of the program.

    Attributes:
        module, function, arguments: what runs it; imported only where it runs.
        seconds: what it may take, with some seven to start its process.
        least: with less it is not begun; it is kept free while those before it run.
    """

    module: str
    function: str
    seconds: float
    least: float
    arguments: tuple[str, ...] = ()

    def run(self, run: Run) -> None:
        module = importlib.import_module(f"benchmarks.gpu.{self.module}")
        getattr(module, self.function)(run, *self.arguments)


PARTS: dict[str, Part] = {
    "build": Part("build", "build", 180, 100),
    "smoke": Part("smoke", "smoke", 40, 20),
    "setting": Part("build", "setting", 20, 10),
    "second_moment": Part("second_moment", "second_moment", 50, 30),
    "gpt2-xl": Part("edits", "edits", 150, 70, ("gpt2-xl", "bfloat16", "tf32", "float32")),
    "llama-3-8b": Part("edits", "edits", 90, 50, ("llama-3-8b", "bfloat16")),
    "first-gpt2-xl": Part("first_edit", "first_edit", 30, 18, ("gpt2-xl", "tf32")),
    "first-llama-3-8b": Part("first_edit", "first_edit", 40, 25, ("llama-3-8b", "bfloat16")),
    "rank_one": Part("rank_one", "rank_one", 45, 25),
    "cholesky": Part("cholesky", "cholesky", 30, 15),
    "validate": Part("validate", "validate", 100, 40),
    "sanitize": Part("validate", "sanitize", 90, 40),
    "roofline": Part("roofline", "roofline", 25, 12),
    "values": Part("values", "values", 25, 12),
    "gpt-j-6b": Part("edits", "edits", 60, 30, ("gpt-j-6b", "bfloat16", "tf32")),
}


def seconds_of(name: str, names: Sequence[str], left: float, scale: float) -> float:
    """What a part may take of the seconds that are left; 0 where that is not enough.

    Those after it keep their least, as far as it goes, in their order.
    """
    part = PARTS[name]
    spare = left - part.least - GRACE_SECONDS
    if spare < 0:
        return 0
    for other in names[names.index(name) + 1 :]:
        kept = PARTS[other].least + GRACE_SECONDS
        spare -= kept if kept <= spare else 0
    return min(max(part.least, scale * part.seconds), part.least + spare)
