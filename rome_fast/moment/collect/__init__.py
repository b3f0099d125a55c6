"""Texts -> second moments, and the forms that ``second_moment=`` of edit() takes.

corpus -> packing -> forward -> (SecondMoment.add); ``collector`` runs them in order.
"""
