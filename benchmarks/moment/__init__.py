"""The second moment: how fast it is collected, how exact, and of how many keys."""
