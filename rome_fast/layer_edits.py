"""What edits are in a layer: those of its weight, and those that stand beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from rome_fast.beside.group import same_subject
from rome_fast.beside.module import Beside
from rome_fast.types import Offset, RankOneUpdate
from rome_fast.update.undo import WeightHistory

if TYPE_CHECKING:
    from rome_fast.beside.writer import OffsetWriter
    from rome_fast.model.spec import DownProjection
    from rome_fast.types import EditRequest, Update


class LayerEdits:
    """The edits of one layer, in both places.

    Attributes:
        history: of the weight.
        writer: what puts edits beside it; None as long as there are none to put.
        solved: what a Session's edits in the weight make true, if they are solved as one.
    """

    def __init__(self, projection: DownProjection, backend: str) -> None:
        self.history = WeightHistory(projection, backend)
        self.writer: OffsetWriter | None = None
        self.solved: Sequence[EditRequest] = ()
        self._projection = projection

    @property
    def updates(self) -> list[Update]:
        """All that is in the model."""
        standing = Beside.at(self._projection)
        return [*self.history.updates, *(() if standing is None else standing.offsets)]

    def set(self, updates: Sequence[Update]) -> None:
        """Make these all that is in the model."""
        self.history.replay([u for u in updates if isinstance(u, RankOneUpdate)])
        if self.writer is not None:
            self.writer.module.set([u for u in updates if isinstance(u, Offset)])

    def add(self, update: Update) -> None:
        """Put one more into the model."""
        if isinstance(update, RankOneUpdate):
            self.history.add(update)
        else:
            self._beside.set([*self._beside.offsets, update])

    @contextmanager
    def having(self, update: Update) -> Iterator[None]:
        """While open, one more is in the model."""
        if isinstance(update, RankOneUpdate):
            with self.history.written(update):
                yield
        else:
            with self._beside.holding([*self._beside.offsets, update]):
                yield

    def rewind(self) -> None:
        """Make the model what it was when this was made."""
        self.history.rewind(0)
        if self.writer is not None:
            self.writer.rewind()

    @property
    def _beside(self) -> Beside:
        assert self.writer is not None
        return self.writer.module

    def of_subject(self, request: EditRequest) -> list[Offset]:
        """What stands beside the MLP for this request's subject."""
        standing = Beside.at(self._projection)
        return [] if standing is None else same_subject(standing.offsets, request.names)

    def has_subject(self, request: EditRequest) -> bool:
        """Whether a fact of this subject is edited in a way that fires with the new one."""
        return bool(self.of_subject(request) or self._solved_with(request))

    def kept_facts(self, request: EditRequest) -> list[EditRequest]:
        """Facts of this subject whose edits fire with the new one; written as it writes it."""
        facts = [o.request for o in self.of_subject(request)] + self._solved_with(request)
        return [
            replace(fact, subject=request.subject, aliases=())
            for fact in facts
            if not fact.same_fact(request)
        ]

    def _solved_with(self, request: EditRequest) -> list[EditRequest]:
        return [fact for fact in self.solved if fact.same_subject(request)]

    def for_search(self, requests: Sequence[EditRequest]) -> AbstractContextManager[None]:
        """While open, offsets of other subjects are away: what is found depends on none of them."""
        standing = Beside.at(self._projection)
        if standing is None:
            return nullcontext()
        return standing.holding([o for request in requests for o in self.of_subject(request)])
