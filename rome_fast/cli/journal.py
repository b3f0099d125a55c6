"""Many edits through a Session whose journal outlives the command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.cli.common import complain, console
from rome_fast.cli.edit_table import Row
from rome_fast.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        options: ``second_moment``, ``variant`` and ``form``.

    Returns:
        A row for each edit that holds, and how many requests were refused.

    Raises:
        InvalidArgumentError: other hyper-parameters than the journal's own were given.
    """
    from rome_fast.session import RejectedEdit

    with _opened(path, model, tok, hparams, options) as session:
        wanted = _last_of_each_fact(requests)
        if len(wanted) < len(requests):
            n_again = len(requests) - len(wanted)
            console.print(f"{n_again} requests are left out: the same fact is asked for again")
        held = {edit.request.fact: edit.request.target for edit in session.log.holding()}
        left = [request for request in wanted if held.get(request.fact) != request.target]
        if len(left) < len(wanted):
            console.print(f"{path} holds {len(wanted) - len(left)} of them already")
        n_refused = 0
        for result in session.stream(left, **together):
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
            edit_id=edit.edit_id,
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
    session = Session.resume(path, model, tok, second_moment=options["second_moment"])
    differing = _differences(session.hparams, hparams, options["variant"])
    if session.form != options["form"]:
        differing.append(f"form is {session.form!r}, not {options['form']!r}")
    if differing:
        session.close()
        raise InvalidArgumentError(
            f"--journal {path} was begun with other hyper-parameters ({', '.join(differing)}): "
            "give the same, leave out --hparams and --variant, or name a new file"
        )
    return session


def _differences(own: RomeHparams, given: RomeHparams | None, variant: str | None) -> list[str]:
    """What --hparams and --variant ask for that the journal was not begun with."""
    asked = {} if given is None else asdict(given)
    for name in ("v_stop_loss", "solver"):  # a Session of the weight has its own
        asked.pop(name, None)
    if variant is not None:
        asked["variant"] = variant
    return [
        f"{name} is {getattr(own, name)!r}, not {value!r}"
        for name, value in asked.items()
        if getattr(own, name) != value
    ]


def _last_of_each_fact(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Drop requests that a later one of the file replaces: they would be edited at every run."""
    last = {request.fact: place for place, request in enumerate(requests)}
    return [request for place, request in enumerate(requests) if last[request.fact] == place]
