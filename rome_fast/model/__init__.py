"""What a decoder is, and how to step into it.

spec (blocks and the matrix to edit) stands on structure, weights and wrappers; intercept steps into
a forward; lock and owner say who may edit; nonfinite says where the first NaN appears.
"""
