"""The log of edits: what was asked, what was written, and on which weights."""

from rome_fast.editlog.edits import LoggedEdit, Rejection
from rome_fast.editlog.log import EditLog, attach

__all__ = ["EditLog", "LoggedEdit", "Rejection", "attach"]
