"""How much memory one edit takes beyond its model, in a process of its own.

An implementation leaves caches, arenas and modules behind; only a fresh process tells its peak.
"""

from __future__ import annotations

import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import RomeFastError
from rome_fast.model.spec import input_device

if TYPE_CHECKING:
    from rome_fast.bench.case import Case
    from rome_fast.bench.peers import Peer

_STATM = Path("/proc/self/statm")
_KILLED = -9


def peak_mib(function: Callable[[], object]) -> int:
    """MiB of resident memory that a call takes on top of what was resident, at its peak."""
    before, seen, done = resident_mib(), [resident_mib()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return round(max(seen) - before)


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    return int(_STATM.read_text().split()[1]) * mmap.PAGESIZE / 2**20


def peaks_in_children(case: Case, peers: Sequence[Peer | str]) -> list[int | None]:
    """Peak of one edit by each implementation, in a fresh process each; MiB beyond the model.

    What is kept for later edits (a factor or an inverse of C) counts too. None where it cannot be
    measured: no /proc, or the system killed the child because memory ran out.

    Args:
        peers: each can be pickled, or is the spec that ``load_peer`` takes.

    Raises:
        RomeFastError: the edit failed there; the message ends with what the child said last.
    """
    if not _STATM.exists():
        return [None for _ in peers]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "case.pt"
        torch.save(case, file)
        return [_peak_in_child(file, peer) for peer in peers]


def _peak_in_child(file: Path, peer: Peer | str) -> int | None:
    child = subprocess.run(
        [sys.executable, "-m", __name__, str(file)],
        input=pickle.dumps(peer),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if child.returncode == _KILLED:
        return None
    if child.returncode:
        said = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RomeFastError(f"no peak memory of {peer!r}: its process failed: {''.join(said)}")
    return int(child.stdout.split()[-1])


def _main() -> None:
    from rome_fast.bench.peers import load_peer

    peer = pickle.load(sys.stdin.buffer)
    peer = load_peer(peer) if isinstance(peer, str) else peer
    case: Case = torch.load(sys.argv[1], weights_only=False)
    device = input_device(case.model)
    with torch.no_grad():  # what a first forward starts and imports belongs to the model
        case.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device))
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        peer.edit(case)
        peak = round((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        peak = peak_mib(lambda: peer.edit(case))
    sys.stdout.write(f"{peak}\n")


if __name__ == "__main__":
    _main()
