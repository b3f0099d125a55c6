"""A readers-writer lock of a model: one edit at a time, none while another thread runs the model.

During an edit the model holds hooks and a half-written weight, whatever the layer. So forwards of
other threads wait until the edit is done, and an edit waits until their running forwards have
ended. They take turns: forwards that waited for one edit go before the next edit.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch.compiler import is_compiling

from rome_fast.errors import SessionError
from rome_fast.model.wrappers import shells

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class _Hook:
    """The hook that a watched module calls. Its copy in a copied or saved model is a no-op."""

    def __init__(self, step: Callable[[], None] | None = None) -> None:
        self._step = step

    def __call__(self, *_: object) -> None:
        # Not traced into compiled code: the entry to that code is watched instead.
        if not is_compiling() and self._step is not None:
            self._step()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


class ModelLock:
    """A readers-writer lock: threads that run the model read, the one that edits it writes.

    It is re-entrant for both; an editor's own forwards pass. All editors of a model share one lock
    (``owner.shared_lock``).

    Attributes:
        n_users: how many share it now.
    """

    def __init__(self) -> None:
        self.n_users = 0
        self._changed = threading.Condition()
        self._readers: Counter[int] = Counter()
        self._editor: int | None = None
        self._depth = self._n_waiting = self._n_blocks = 0
        # Threads waiting to read, and those of them that go before the next editor.
        self._queue: set[int] = set()
        self._due: set[int] = set()
        self._watched: set[int] = set()
        self._resources = ExitStack()

    def watch(self, model: PreTrainedModel) -> None:
        """Make the model's forwards take the lock, as readers.

        Args:
            model: may be wrapped; every wrapper and the model itself are hooked. Code that is
                compiled after this call is not watched.
        """
        for shell in shells(model):
            if id(shell) not in self._watched:
                self._watched.add(id(shell))
                self._watch(shell)

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._resources.close()

    def _watch(self, model: nn.Module) -> None:
        enter = model.register_forward_pre_hook(_Hook(self._enter))
        # Also when the forward raises, or the next edit would wait for ever.
        leave = model.register_forward_hook(_Hook(self._leave), always_call=True)
        self._resources.callback(enter.remove)
        self._resources.callback(leave.remove)
        compiled = model._compiled_call_impl
        if compiled is not None:  # model.compile() runs the hooks in compiled code

            def call(*args: Any, **kwargs: Any) -> Any:
                self._enter()
                try:
                    return compiled(*args, **kwargs)
                finally:
                    self._leave()

            model._compiled_call_impl = call
            self._resources.callback(setattr, model, "_compiled_call_impl", compiled)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While open, no other thread edits."""
        self._enter(block=True)
        try:
            yield
        finally:
            self._leave(block=True)

    @contextmanager
    def editing(self) -> Iterator[None]:
        """While open, no other thread edits or runs the model.

        Raises:
            SessionError: this very thread is inside ``reading``.
        """
        me = threading.get_ident()
        with self._changed:
            if self._editor != me:
                if self._readers[me]:
                    raise SessionError("an edit inside session.reading() would wait for itself")
                self._n_waiting += 1
                try:
                    self._changed.wait_for(self._may_edit)
                finally:
                    self._n_waiting -= 1
                self._editor = me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._editor = None
                    self._due = set(self._queue)
                    self._changed.notify_all()

    @property
    def _n_readers(self) -> int:
        return self._readers.total()

    def _may_edit(self) -> bool:
        return self._editor is None and not self._n_readers and not self._due

    def _enter(self, block: bool = False) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._editor != me and not self._readers[me]:
                self._queue.add(me)
                try:
                    self._changed.wait_for(lambda: self._may_pass(me, block))
                finally:
                    self._queue.remove(me)
                    self._due.discard(me)
                    self._changed.notify_all()  # even after Ctrl-C: an editor may wait for it
            if self._editor != me:
                self._readers[me] += 1
            self._n_blocks += block

    def _may_pass(self, me: int, block: bool) -> bool:
        """New readers let waiting editors go first, unless they have waited for an edit already.

        While a ``reading`` block is open, forwards pass as well: no editor can start before the
        block ends, and the block may be waiting for this forward, run in another thread.
        """
        if self._editor is not None:
            return False
        return not self._n_waiting or me in self._due or (self._n_blocks > 0 and not block)

    def _leave(self, block: bool = False) -> None:
        me = threading.get_ident()
        with self._changed:
            self._n_blocks -= block
            if self._editor != me and self._readers[me]:
                self._readers[me] -= 1
                self._readers += Counter()  # drop threads whose count is zero
            self._changed.notify_all()
