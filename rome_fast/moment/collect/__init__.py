"""Texts -> second moments, and what ``second_moment=`` of edit() may be.

corpus -> packing -> forward -> (SecondMoment.add) -> convergence; ``collector`` knows the order.
"""
