"""Answers before and after an edit, a line each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rome_fast.cli.common import console

if TYPE_CHECKING:
    from rome_fast.evaluate.around import Answer

# Of the names in ``print(result)``, which these lines stand below.
_WIDTH = 14


def print_answers(answers: Sequence[Answer]) -> None:
    """Greedy answers to the edited prompt, in a chat too, and to the same words about others."""
    subject, own_form = answers[0].about, answers[0].in_chat
    names = []
    for answer in answers:
        name = "goes on" if answer.about == subject else f"of {answer.about}"
        names.append(name if answer.in_chat == own_form else "in a chat")
    width = max(_WIDTH, *(len(name) + 1 for name in names))
    for name, answer in zip(names, answers, strict=True):
        console.print(f"  {name:<{width}}{answer}", markup=False, soft_wrap=True)
