"""Judging edits: records of what to edit and to ask, scores, metrics, and the report."""

from rome_fast.evaluate.capability import Capability, measure_capability
from rome_fast.evaluate.comparison import Comparison, compare
from rome_fast.evaluate.evaluation import Evaluation
from rome_fast.evaluate.loading import load_records
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.evaluate.run import evaluate

__all__ = [
    "Capability",
    "Comparison",
    "EditRecord",
    "Evaluation",
    "Question",
    "compare",
    "evaluate",
    "load_records",
    "measure_capability",
]
