"""Checkpoints of a collection: the state to resume from, to the same bits, after interruptions."""

from __future__ import annotations

import glob
import hashlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.atomic_files import write_whole
from rome_fast.errors import SecondMomentError
from rome_fast.moment.files import pack, unpack_

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.moment.collect.packing import Row
    from rome_fast.moment.collect.ranks import Ranks
    from rome_fast.moment.second_moment import SecondMoment

SECONDS_BETWEEN = 60.0


class Checkpoint:
    """One rank's file; several ranks write theirs together.

    Args:
        path: of the file, or None to keep no checkpoint. With several ranks each adds its number.
        settings: all that the result depends on except the texts; must be equal on resuming.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], ranks: Ranks) -> None:
        if path is not None and ranks.size > 1:
            path = path.with_name(f"{path.name}.rank{ranks.rank}of{ranks.size}")
        self.path = path
        self._settings = settings
        self._ranks = ranks
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        return self.path is not None and time.monotonic() - self._last >= SECONDS_BETWEEN

    def save(self, progress: dict[str, Any], moments: dict[int, SecondMoment]) -> None:
        """Write ``progress`` (JSON-able) and the state of every layer, atomically."""
        if self.path is None:
            return
        from safetensors.torch import save_file

        tensors, layers = {}, {}
        for layer, moment in moments.items():
            for name, tensor in _state(moment).items():
                tensors[f"{layer}.{name}"] = tensor
            layers[layer] = {"count": moment.count}
        state = {"settings": self._settings, "progress": progress, "layers": layers}
        metadata = {"checkpoint": json.dumps(state)}
        write_whole(
            self.path,
            lambda partial: save_file(tensors, partial, metadata=metadata),
            agree=self._ranks.wait,
        )
        self._last = time.monotonic()

    def load(self, moments: dict[int, SecondMoment]) -> dict[str, Any] | None:
        """Fill the layers from the file and return its progress; None where there is no file.

        Raises:
            SecondMomentError: the file is damaged, or of a collection with other settings.
        """
        if self.path is None:
            return None
        # Left by a process that was killed while it wrote.
        for stale in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.partial"):
            stale.unlink()
        if not self.path.exists():
            return None
        state, tensors = self._read()
        for field, value in self._settings.items():
            if state["settings"].get(field) != value:
                raise SecondMomentError(
                    f"checkpoint {str(self.path)!r} is of another collection: {field} was "
                    f"{state['settings'].get(field)!s:.40}, now it is {value!s:.40}; delete it to "
                    "start again"
                )
        for layer, moment in moments.items():
            mine = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{layer}.")}
            unpack_(moment.moment_sum, mine["moment_sum"])
            if moment.compensation is not None:
                unpack_(moment.compensation, mine["compensation"])
            moment.count = state["layers"][str(layer)]["count"]
        progress: dict[str, Any] = state["progress"]
        return progress

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                state = json.loads((file.metadata() or {})["checkpoint"])
                return state, {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise SecondMomentError(
                f"checkpoint {str(self.path)!r} cannot be read ({error}): delete it to start again"
            ) from error


def _state(moment: SecondMoment) -> dict[str, Tensor]:
    tensors = {"moment_sum": pack(moment.moment_sum)}
    if moment.compensation is not None:
        tensors["compensation"] = pack(moment.compensation)
    return tensors


class RowDigest:
    """Running hash of the rows that were read, to see that resumed texts are the same ones."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, row: Row) -> None:
        self._hash.update(repr((row.ids, row.positions)).encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def number(self) -> int:
        """The digest as a 63-bit number, to compare among processes."""
        return int(self.hexdigest(), 16) >> 193


class Interrupt:
    """Whether Ctrl-C was pressed, or SIGTERM came (``pressed``)."""

    pressed = False


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """While open, only note the first Ctrl-C or SIGTERM; a second one acts at once.

    A signal that is ignored already (SIGINT in a background job) stays ignored.
    """
    noted = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield noted  # signals reach the main thread only
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A handler of None was not set by Python, and could not be restored.
    ours = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}

    def note(number: int, frame: Any) -> None:
        noted.pressed = True
        signal.signal(number, ours[signal.Signals(number)])

    for number in ours:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
