"""Sequences of edits: retention, guards, health, undo, and a journal on disk."""

from rome_fast.session.consolidate import Consolidation
from rome_fast.session.guard import Guard
from rome_fast.session.health import Health, HealthCheck
from rome_fast.session.sequence import RejectedEdit
from rome_fast.session.session import Session

__all__ = ["Consolidation", "Guard", "Health", "HealthCheck", "RejectedEdit", "Session"]
