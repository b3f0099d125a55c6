"""The ``rome-fast`` command; ``app`` lists what it can do."""

from rome_fast.cli.app import main

__all__ = ["main"]
