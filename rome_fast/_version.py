"""The version, where every file that writes it can read it."""

__version__ = "0.2.0"
