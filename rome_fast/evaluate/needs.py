"""What a protocol needs of a record beside its edit, and which records do not have it."""

from __future__ import annotations

from collections.abc import Sequence

from rome_fast.evaluate.records import EditRecord

_COMPARES = "protocol 'rome': ES, PS, EM and PM compare with the true target"
# Cases that a note names.
_NAMED = 10


def lacking(protocols: Sequence[str], records: Sequence[EditRecord]) -> list[str]:
    """A remark for each protocol that does not count all records in what it is named for.

    Only "rome" compares two objects; what the others count, every record has.
    """
    without = [
        record.case_id
        for record in records
        if any(fact.target_true is None for fact in record.facts)
    ]
    if "rome" not in protocols or not without:
        return []
    if len(without) == len(records):
        missed = (
            f"none of the {len(records)} records has: they are not measured; the others need none"
        )
    else:
        named = ", ".join(map(str, without[:_NAMED]))
        more = f" and {len(without) - _NAMED} more" if len(without) > _NAMED else ""
        missed = f"{len(without)} of {len(records)} records lack: case_id {named}{more}"
    return [f"{_COMPARES}, which {missed}"]
