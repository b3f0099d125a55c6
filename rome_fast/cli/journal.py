"""Many edits through a Session whose journal outlives the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.cli.common import complain, console
from rome_fast.cli.edit_table import Row
from rome_fast.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.editlog import EditLog
    from rome_fast.hparams import RomeHparams
    from rome_fast.session import Session
    from rome_fast.types import EditRequest


def edit_with_journal(
    path: Path,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    hparams: RomeHparams | None,
    together: dict[str, Any],
    options: dict[str, Any],
) -> tuple[list[Row], int]:
    """Edit what the journal does not hold yet.

    Args:
        together: ``order`` and ``window``.
        options: ``second_moment`` and ``variant``.

    Returns:
        A row for each edit that holds, and how many requests were refused.

    Raises:
        InvalidArgumentError: hyper-parameters were given for a journal that has its own.
    """
    from rome_fast.session import RejectedEdit

    with _opened(path, model, tok, hparams, options) as session:
        left = [request for request in requests if not _is_in(session.log, request)]
        if len(left) < len(requests):
            console.print(f"{path} holds {len(requests) - len(left)} of them already")
        n_refused = 0
        for result in session.edit_many(left, **together):
            if isinstance(result, RejectedEdit):
                n_refused += 1
                complain(result)
        log = session.log
        for check in session.checks[-1:]:
            console.print(f"health: {check}", markup=False, soft_wrap=True)
    how = f"layer {log.base.edited[next(iter(log.base.edited))].layer}, in {path}"
    rows = [
        Row(
            edit.request,
            edit.numbers["prob_before"],
            edit.numbers["prob_after"],
            edit.numbers["rank_after"] == 1,
            tuple(edit.numbers["warnings"]),
            how,
        )
        for edit in log.holding()
    ]
    return rows, n_refused


def _opened(
    path: Path,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    hparams: RomeHparams | None,
    options: dict[str, Any],
) -> Session:
    from rome_fast.session import Session

    if not path.exists() or not path.stat().st_size:
        return Session(model, tok, hparams, journal=path, **options)
    if hparams is not None or options["variant"] is not None:
        raise InvalidArgumentError(
            f"--journal {path} was begun with hyper-parameters of its own: leave out --hparams and "
            "--variant, or name a new file"
        )
    return Session.resume(path, model, tok, second_moment=options["second_moment"])


def _is_in(log: EditLog, request: EditRequest) -> bool:
    """Whether the fact says this target already, by an edit that holds."""
    return any(
        edit.request.same_fact(request) and edit.request.target == request.target
        for edit in log.holding()
    )
