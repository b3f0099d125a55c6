"""Rivals by name: rows are written with these names, and goals look them up by them."""

COPY = "copy of as many bytes"
PRODUCT = "keys.T @ keys"
REFERENCE = "dense inverse, outer, add"
WHOLE = "whole model"
EXACT = "exact order"
