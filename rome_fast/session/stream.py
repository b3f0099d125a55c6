"""Many requests, edited as their results are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import TYPE_CHECKING

from rome_fast.errors import InvalidRequestError, SessionWarning, warn
from rome_fast.timings import progress_bar
from rome_fast.types import EditRequest

if TYPE_CHECKING:
    from rome_fast.edit import Request
    from rome_fast.session.sequence import Outcome


class EditStream(Iterator["Outcome"]):
    """Edits a window of requests whenever its results are asked for, and yields them one by one.

    Nothing is edited before the first result is asked for.

    Args:
        edit: edits the first requests of a list, and removes from the list those that it has edited
            or rejected, also when it raises.

    Attributes:
        tell: shows a text behind the bar.
    """

    def __init__(
        self,
        edit: Callable[[list[EditRequest]], list[Outcome]],
        requests: Iterable[Request],
        size: int,
        progress: bool,
    ) -> None:
        self._edit, self._size = edit, size
        self._coming = enumerate(requests)
        self._waiting: list[EditRequest] = []
        self._done: deque[Outcome] = deque()
        self._started = False
        total = len(requests) if isinstance(requests, Sized) else None
        self._bar = progress_bar(show=progress, total=total, desc="edits", unit="edit")
        # Of the bar, not of the stream, which shall end when the caller drops it.
        self.tell: Callable[[str], None] = self._bar.set_postfix_str

    def __next__(self) -> Outcome:
        self._started = True
        if not self._done:
            self._fill()
            if not self._waiting:
                self._bar.close()
                raise StopIteration
            self._done.extend(self._edit(self._waiting))
        self._bar.update(1)
        return self._done.popleft()

    def __del__(self) -> None:
        if not getattr(self, "_started", True):
            self._bar.close()
            warn(
                "session.stream() was never iterated, so nothing was edited: write "
                "`for result in session.stream(...)`, or session.edit_many(...)",
                SessionWarning,
            )

    def _fill(self) -> None:
        for index, item in islice(self._coming, self._size - len(self._waiting)):
            try:
                self._waiting.append(EditRequest.parse(item))
            except InvalidRequestError as error:
                raise type(error)(f"requests[{index}]: {error}") from error
