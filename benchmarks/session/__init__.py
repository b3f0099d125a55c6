"""Sequences of edits."""
