"""``rome-fast demo``: a fact of the embedded model edited, asked about, and undone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.table import Table

from rome_fast.cli.common import EDIT_FAILED, console, no_loading_bars, one_line_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.demo import DemoFact

# The table has less than 100 columns in any terminal; a narrower one folds the prompts further.
_PROMPT_WIDTH = 43


@dataclass(frozen=True)
class Question:
    """A prompt, and the answer that is right once the edit is made."""

    kind: str
    prompt: str
    target: str


@dataclass(frozen=True)
class Answer:
    """Probability of the target, and the greedy answer in as many tokens as the target has."""

    prob: float
    text: str


def demo() -> None:
    """Edit a fact of the embedded model, show what changed and what did not, and undo it."""
    import rome_fast
    from rome_fast.demo import load

    with one_line_errors():
        no_loading_bars()
        model, tok, facts = load()
        fact = next(f for f in facts if f.subject == "Ray Charles" and f.target == "piano")
        questions = _questions(fact)
        bits = _digest(model)
        before = [_ask(model, tok, question) for question in questions]
        request = rome_fast.EditRequest(fact.prompt, fact.subject, fact.target_new)
        result = rome_fast.edit(model, tok, request)
        after = [_ask(model, tok, question) for question in questions]
    console.print(f"{fact.subject}: {fact.target} -> {fact.target_new}\n")
    console.print(_before_and_after(questions, before, after))
    console.print(f"\n{result}", markup=False, soft_wrap=True)
    edited = _digest(model)
    result.revert()
    same = _digest(model) == bits
    console.print(
        f"undone: weights {bits[:8]} -> {edited[:8]} -> {_digest(model)[:8]} (sha256), "
        f"{'bit-identical to before' if same else 'NOT THE SAME'}",
        soft_wrap=True,
    )
    if not (result.success and same):
        raise typer.Exit(EDIT_FAILED)


def _questions(fact: DemoFact) -> list[Question]:
    """The prompt that is edited, paraphrases of it, and prompts about other subjects."""
    return [
        Question("rewrite", fact.prompt.replace("{}", fact.subject), fact.target_new),
        *(Question("paraphrase", text, fact.target_new) for text in fact.paraphrase_prompts[:2]),
        *(Question("neighbour", p.prompt, p.target) for p in fact.neighborhood_prompts[:3]),
    ]


def _ask(model: PreTrainedModel, tok: PreTrainedTokenizerBase, question: Question) -> Answer:
    from rome_fast.prompt.ids import text_ids
    from rome_fast.prompt.readback import greedy_continuations, read_targets
    from rome_fast.prompt.target import find_target_ids

    prompt_ids = text_ids(tok, question.prompt)
    target_ids = find_target_ids(tok, question.prompt, question.target)
    [reading] = read_targets(model, tok, [prompt_ids], [target_ids])
    [text] = greedy_continuations(model, tok, [prompt_ids], len(target_ids))
    return Answer(reading.prob, text.strip())


def _before_and_after(
    questions: list[Question], before: list[Answer], after: list[Answer]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("prompt", max_width=_PROMPT_WIDTH)
    for title in ("model says", "target", "its probability"):
        table.add_column(title, no_wrap=True)
    for question, old, new in zip(questions, before, after, strict=True):
        answers = f"{old.text} -> {new.text}"
        probs = f"{old.prob:.3f} -> {new.prob:.3f}"
        table.add_row(question.kind, question.prompt, answers, question.target, probs)
    return table


def _digest(model: PreTrainedModel) -> str:
    from rome_fast.model.hashes import fingerprint

    return fingerprint(*model.parameters())
