"""The bar of a collection: tokens done, tokens per second, and the time that is left."""

from __future__ import annotations

from types import TracebackType

from rome_fast.timings import progress_bar


class Progress:
    """Context manager around a tqdm bar that also ends where the texts do.

    Args:
        budget: tokens in all.
        show: whether there is a bar at all.
        title: what is done, and why.
    """

    def __init__(self, budget: int, show: bool, title: str) -> None:
        self._budget = budget
        # It goes when it is full: what was collected is said by its result.
        self._bar = progress_bar(
            show=show, total=budget, desc=title, unit="tok", unit_scale=True, leave=False
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._bar.total = self._bar.n
        self._bar.close()

    def update(self, tokens: int, fraction_read: float | None) -> None:
        """Show ``tokens`` done, of the budget or of what the texts are likely to hold."""
        if fraction_read and tokens:
            self._bar.total = min(self._budget, int(tokens / fraction_read))
        self._bar.update(tokens - self._bar.n)
