"""The bar of a collection: tokens done, tokens per second, and the time that is left."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rome_fast.moment.collect.convergence import TOLERANCE
from rome_fast.timings import progress_bar

if TYPE_CHECKING:
    from rome_fast.moment.collect.convergence import Convergence


class Progress:
    """Context manager around a tqdm bar whose total is estimated as the collection goes on.

    Args:
        budget: tokens in all, or None where convergence decides.
        show: whether there is a bar at all.
    """

    def __init__(self, budget: int | None, show: bool) -> None:
        self._budget = budget
        # It goes when it is full: what was collected is said by its result.
        self._bar = progress_bar(
            show=show, total=budget, desc="second moment", unit="tok", unit_scale=True, leave=False
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

    def update(
        self,
        tokens: int,
        fraction_read: float | None,
        convergences: dict[int, Convergence],
    ) -> None:
        """Show ``tokens`` done; the total is estimated from texts read and from convergence."""
        totals = [] if self._budget is None else [self._budget]
        if fraction_read and tokens:
            totals.append(int(tokens / fraction_read))
        last = [c.checks[-1] for c in convergences.values() if len(c.checks) > 1]
        if last:
            worst = max(check["change"] for check in last)
            # Noise falls with the root of the count.
            totals.append(max(tokens, int(last[0]["count"] * (worst / TOLERANCE) ** 2)))
            self._bar.set_postfix_str(f"C^-1 k within {worst:.0%}, stops at {TOLERANCE:.0%}")
        self._bar.total = min(totals, default=None)
        self._bar.update(tokens - self._bar.n)
