"""The log of edits: what was asked, what was written, and on which weights."""

from rome_fast.editlog.log import EditLog, attach
from rome_fast.editlog.records import LoggedEdit, Rejection

__all__ = ["EditLog", "LoggedEdit", "Rejection", "attach"]
