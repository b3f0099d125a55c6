"""An Evaluation for people: a table for the terminal, a page of HTML; and for other programs."""

from rome_fast.evaluate.report.export import as_csv, as_latex, as_markdown, case_rows
from rome_fast.evaluate.report.page import write_page
from rome_fast.evaluate.report.table import tables

__all__ = ["as_csv", "as_latex", "as_markdown", "case_rows", "tables", "write_page"]
