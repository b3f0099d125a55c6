"""What editing knows of a decoder, and how it hooks into one.

spec (blocks and the matrix to edit) builds on structure, weights and wrappers; intercept changes
a forward; lock and owner say who may edit; nonfinite says where the first NaN appears.
"""
