"""All edits that are solved as one, bettered together: what each asks for, on the edited model.

Each was found alone, on the unedited model, with much to spare. Here keys and solution stay, and
what the edits ask for moves so that every target is still said, and everything else is as the
unedited model has it: the edits' own prompts about other subjects, ordinary text, and prompts that
the user names (docs/sessions.md).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.editlog.solved import constraints_of
from rome_fast.errors import InvalidArgumentError
from rome_fast.hparams import is_number
from rome_fast.model.intercept import hooked
from rome_fast.moment.collect.ordinary import ORDINARY_TEXT
from rome_fast.prompt.ids import all_text_ids
from rome_fast.prompt.logits import logits_at, logits_with_grad
from rome_fast.session.baseline import prompt_ids
from rome_fast.session.others import about, other_names, where_heard
from rome_fast.timings import progress_bar
from rome_fast.types import JointConstraint

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.editlog import LoggedEdit
    from rome_fast.editor import Editor
    from rome_fast.prompt.encode import TokenizedEdit

# Of a step: edits, prompts about other subjects, and texts of so many tokens.
_N_EDITS, _N_OTHERS, _N_TEXTS, _LENGTH = 16, 16, 8, 24
# Of all names, so many for each edit: those that it is heard at most.
_N_NAMES = 32
# An edit whose target has this loss or less asks for no more: 0.86 of the probability.
ENOUGH = 0.15
# What a nat of KL weighs beside a nat of the edits' loss.
OTHERS, TEXT = 2.0, 1.0
MOST_PROTECTED = 1000
STEPS = 80
# Of the mean size of an element of what the edits ask for, by step.
_RATE = 0.03

Place = tuple[int, int]


@dataclass(frozen=True)
class Consolidation:
    """What ``Session.consolidate`` has done.

    Attributes:
        n_edits: that were bettered.
        steps, seconds: what it took.
        missed: mean loss of the targets beyond what is enough, nats, over the first steps and over
            the last.
        others: KL from the unedited model on prompts about other subjects, likewise.
        text: the same on ordinary text.
    """

    n_edits: int
    steps: int
    seconds: float
    missed: tuple[float, float]
    others: tuple[float, float]
    text: tuple[float, float]

    def __str__(self) -> str:
        moved = ", ".join(
            f"{name} {first:.3f} -> {last:.3f}"
            for name, (first, last) in (
                ("missed", self.missed),
                ("KL on other subjects", self.others),
                ("on text", self.text),
            )
        )
        return f"{self.n_edits} edits, {self.steps} steps, {self.seconds:.0f} s: {moved}"


class Consolidator:
    """Searches what edits ask for; the weight is the unedited one meanwhile.

    Args:
        edits: all that hold and are solved as one.
        encoded: the same, as rows of ids.
        protect: prompts whose next token shall stay the unedited model's.
    """

    def __init__(
        self,
        editor: Editor,
        edits: Sequence[LoggedEdit],
        encoded: Sequence[TokenizedEdit],
        protect: Sequence[str],
    ) -> None:
        self._editor, self._edits, self._encoded = editor, edits, encoded
        self._constraints = constraints = constraints_of(edits)
        # Facts of one subject ask for the same.
        own = {id(c.residual): c.residual for c in constraints}
        place = {key: n for n, key in enumerate(own)}
        # Those of a journal that was resumed lie on the CPU.
        device = editor.projection.weight.device
        self._place = torch.tensor([place[id(c.residual)] for c in constraints], device=device)
        self._rows = _solution(constraints).to(device)
        asked = torch.stack([residual.to(device) for residual in own.values()])
        self.residuals = asked.float().requires_grad_()
        # Seeded by what is asked for: a second call draws others.
        self._drawn = random.Random(float(asked.detach().double().sum()))
        names = other_names([edit.request for edit in edits])
        self._names = where_heard(editor, names, self._rows, _N_NAMES)
        self._protect = [prompt_ids(editor.model, editor.tok, p, "protect") for p in protect]
        self._texts = _ordinary_ids(editor)
        size = float(self.residuals.detach().square().mean().sqrt())
        self._adam = torch.optim.Adam([self.residuals], lr=_RATE * size)
        self._seen: list[tuple[float, float, float]] = []

    def run(self, steps: int, seconds: float | None, show: bool) -> Consolidation:
        """Take steps, until there are enough or the time is over."""
        began = time.monotonic()
        with progress_bar(range(steps), show=show, desc="consolidate", unit="step") as bar:
            for _ in bar:
                if seconds is not None and time.monotonic() - began > seconds:
                    break
                self._seen.append(self._step())
        n = max(len(self._seen) // 4, 1)
        first, last = (
            [sum(column) / n for column in zip(*part, strict=True)]
            for part in (self._seen[:n], self._seen[-n:])
        )
        missed, others, text = zip(first, last, strict=True)
        taken = time.monotonic() - began
        return Consolidation(len(self._edits), len(self._seen), taken, missed, others, text)

    def asked(self) -> dict[int, Tensor]:
        """What each edit asks for now, [d_value], by number; not of those another speaks for."""
        found = {}
        for edit, constraint, n in zip(self._edits, self._constraints, self._place, strict=True):
            if constraint is edit.update:
                found[edit.edit_id] = self.residuals[n].detach().to(constraint.residual)
        return found

    def _step(self) -> tuple[float, float, float]:
        rows, places, targets, n_edits = self._edit_rows()
        others = self._other_rows()
        texts = [ids[:_LENGTH] for ids in self._drawn.sample(self._texts, _N_TEXTS)]
        kept = [*others, *texts]
        kept_places = [(i, len(ids) - 1) for i, ids in enumerate(others)]
        kept_places += [
            (i, position)
            for i, ids in enumerate(texts, len(others))
            for position in range(len(ids))
        ]
        model = self._editor.model
        before = logits_at(model, kept, kept_places).float().log_softmax(-1)
        moved = [(row + len(rows), position) for row, position in kept_places]
        with torch.enable_grad(), hooked(self._editor.projection.module, self._add):
            logits = logits_with_grad(model, [*rows, *kept], [*places, *moved]).float()
            said, now = logits.log_softmax(-1).split([len(places), len(moved)])
            kl = (before.exp() * (before - now)).sum(-1)
            parts = self._missed(said, targets, n_edits), kl[: len(others)].mean()
            text = kl[len(others) :].mean()
            loss = parts[0] + OTHERS * parts[1] + TEXT * text
            self._adam.zero_grad()
            loss.backward()
        self._adam.step()
        return parts[0].item(), parts[1].item(), text.item()

    def _add(self, module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """What the edits add to the matrix' output."""
        asked = self.residuals[self._place]
        share = args[0].float() @ self._rows.T
        return output + (share @ asked).to(output.dtype)

    def _edit_rows(self) -> tuple[list[list[int]], list[Place], Tensor, Tensor]:
        """Rows of a few edits, each in one of its contexts; where which token is asked of whom."""
        chosen = self._drawn.sample(range(len(self._edits)), min(_N_EDITS, len(self._edits)))
        rows, places, targets, of_edit = [], [], [], []
        for number, tokens in enumerate(self._encoded[i] for i in chosen):
            at = self._drawn.randrange(tokens.n_contexts)
            length, start = int(tokens.attention_mask[at].sum()), int(tokens.target_start[at])
            rows.append(tokens.input_ids[at, :length].tolist())
            n = len(tokens.said_ids)
            places += [(number, start + i) for i in range(n)]
            targets += tokens.said_ids.tolist()
            of_edit += [number] * n
        return rows, places, torch.tensor(targets), torch.tensor(of_edit)

    def _missed(self, said: Tensor, targets: Tensor, of_edit: Tensor) -> Tensor:
        """Mean over edits of the loss of the target, a token, beyond what is enough."""
        targets, of_edit = targets.to(said.device), of_edit.to(said.device)
        lost = -said.gather(1, targets[:, None])[:, 0]
        n = int(of_edit[-1]) + 1
        total = lost.new_zeros(n).index_add(0, of_edit, lost)
        count = torch.bincount(of_edit, minlength=n)
        return (total / count - ENOUGH).relu().mean()

    def _other_rows(self) -> list[list[int]]:
        """Prompts of edits about other subjects, and some that the user protects."""
        chosen = self._drawn.sample(range(len(self._edits)), min(_N_OTHERS, len(self._edits)))
        texts = [about(self._edits[i].request, self._drawn.choice(self._names[i])) for i in chosen]
        rows = [ids for ids in all_text_ids(self._editor.tok, texts) if ids]
        if self._protect:
            rows += self._drawn.sample(self._protect, min(_N_OTHERS, len(self._protect)))
        return rows


def check_consolidate(steps: object, seconds: Any, protect: object) -> None:
    """Check the arguments of ``Session.consolidate``. Raises InvalidArgumentError."""
    if type(steps) is not int or steps < 1:
        raise InvalidArgumentError(f"steps must be a whole number of 1 or more, got {steps!r}")
    if seconds is not None and (not is_number(seconds) or not 0 < seconds < math.inf):
        raise InvalidArgumentError(
            f"seconds must be a finite number above 0, or None, got {seconds!r}"
        )
    if isinstance(protect, str) or not isinstance(protect, Sequence):
        raise InvalidArgumentError(f"protect must be a list of prompts, got {protect!r:.80}")
    for index, prompt in enumerate(protect):
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidArgumentError(
                f"protect[{index}] must be a prompt, got {prompt!r:.80}: leave it out"
            )
    if len(protect) > MOST_PROTECTED:
        raise InvalidArgumentError(
            f"protect has {len(protect)} prompts, more than {MOST_PROTECTED}: a step asks only "
            f"{_N_OTHERS} of them; give those that matter most"
        )


def _solution(constraints: Sequence[JointConstraint]) -> Tensor:
    """(K^T C^-1 K + lam I)^-1 K^T C^-1, float32 [n, d_key]."""
    device = constraints[0].key.device
    keys = torch.stack([c.key.to(device) for c in constraints]).double()
    solved = torch.stack([c.solved.to(device) for c in constraints]).double()
    gram = keys @ solved.T
    gram.diagonal().add_(constraints[0].lam)
    return torch.linalg.solve(gram, solved).float()


def _ordinary_ids(editor: Editor) -> list[list[int]]:
    lines = ORDINARY_TEXT.read_text(encoding="utf-8").splitlines()
    return [ids for ids in all_text_ids(editor.tok, lines[: 40 * _N_TEXTS]) if len(ids) > 1]
