"""How long an edit takes, beside other implementations and the arithmetic it cannot do without."""
