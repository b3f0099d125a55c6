"""Names that rows are written with, and by which goals look them up."""

COPY = "copy of as many bytes"
PRODUCT = "keys.T @ keys"
REFERENCE = "dense inverse, outer, add"
WHOLE = "whole model"
EXACT = "exact order"
# An edit searched as in the first measurement, 20 steps of Adam in 22 rows, has no word of it in
# its row's name; one that is searched as the library does by itself has this one.
BY_DEFAULT = " by default"
