"""(u, v): the rank-one update of one request (solve) or of several (joint), and its undo."""
