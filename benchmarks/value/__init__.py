"""Studies of the search for v*."""
