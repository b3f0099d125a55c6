"""An Evaluation for people: a table for the terminal, a page of HTML that needs nothing else."""

from rome_fast.evaluate.report.page import write_page
from rome_fast.evaluate.report.table import tables

__all__ = ["tables", "write_page"]
