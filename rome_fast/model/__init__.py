"""What editing knows about a decoder, and how it hooks into its forward.

spec (blocks and the matrix to edit) builds on structure, weights and wrappers; intercept hooks into
a forward; lock and owner say who may edit; nonfinite says where the first NaN appears.
"""
