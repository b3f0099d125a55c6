"""Sequences of edits: retention, guards, health, undo, and a journal on disk."""

from rome_fast.session.guard import Guard
from rome_fast.session.health import Health, HealthCheck
from rome_fast.session.sequence import RejectedEdit
from rome_fast.session.session import Session

__all__ = ["Guard", "Health", "HealthCheck", "RejectedEdit", "Session"]
