"""Texts -> second moments, and what ``second_moment=`` of edit() may be.

corpus -> packing -> forward -> (SecondMoment.add) -> convergence; ``collector`` knows the order.
"""

from rome_fast.collect.collector import collect_second_moment
from rome_fast.collect.resolve import resolve_second_moment

__all__ = ["collect_second_moment", "resolve_second_moment"]
