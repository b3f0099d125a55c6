"""Edits that only fire for their subject: units and gates beside an MLP, whose tensors stay."""
