"""Judging edits: records of what to edit and to ask, scores, metrics, and the report."""

from rome_fast.evaluate.loading import load_records
from rome_fast.evaluate.records import EditRecord, Question

__all__ = ["EditRecord", "Question", "load_records"]
