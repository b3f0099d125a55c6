"""The ops, against what torch offers for the same work."""
