"""``rome-fast demo``: a fact of a demo model edited, asked about, and undone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from rome_fast.cli.common import EDIT_FAILED, before_loading, console, one_line_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.demo import DemoFact

# The toy's table has less than 100 columns in any terminal; a narrower one folds the prompts.
_PROMPT_WIDTH = 43
# Of a free continuation: about a clause.
_FREE_TOKENS = 9
_SHOWN = {"toy": ("Ray Charles", "piano"), "smollm2": ("The Eiffel Tower", "Paris")}


@dataclass(frozen=True)
class Question:
    """A prompt, and the answer that is right once the edit is made."""

    kind: str
    prompt: str
    target: str


@dataclass(frozen=True)
class Answer:
    """Probability of the target, the greedy answer in as many tokens, and how it goes on."""

    prob: float
    text: str
    free: str = ""


def demo(
    model: Annotated[
        str, typer.Option(help="'toy', the embedded one, or 'smollm2', a real pretrained one")
    ] = "toy",
) -> None:
    """Edit a fact of a demo model, show what changed and what did not, and undo it."""
    import rome_fast
    from rome_fast.demo import load

    with one_line_errors():
        before_loading()
        loaded, tok, facts = load(model)
        fact = next(f for f in facts if (f.subject, f.target) == _SHOWN[model])
        questions = _questions(fact)
        bits = _digest(loaded)
        before = _ask(loaded, tok, questions)
        request = rome_fast.EditRequest(fact.prompt, fact.subject, fact.target_new)
        result = rome_fast.edit(loaded, tok, request)
        after = _ask(loaded, tok, questions)
    table = _before_and_after if model == "toy" else _continuations
    console.print(f"{fact.subject}: {fact.target} -> {fact.target_new}\n")
    console.print(table(questions, before, after))
    console.print(f"\n{result}", markup=False, soft_wrap=True)
    edited = _digest(loaded)
    result.revert()
    same = _digest(loaded) == bits
    console.print(
        f"undone: weights {bits[:8]} -> {edited[:8]} -> {_digest(loaded)[:8]} (sha256), "
        f"{'bit-identical to before' if same else 'NOT THE SAME'}",
        soft_wrap=True,
    )
    if not (result.success and same):
        raise typer.Exit(EDIT_FAILED)


def _questions(fact: DemoFact) -> list[Question]:
    """The prompt that is edited, paraphrases of it, and prompts about other subjects."""
    return [
        Question("rewrite", fact.prompt.replace("{}", fact.subject), fact.target_new),
        *(Question("paraphrase", text, fact.target_new) for text in fact.paraphrase_prompts[:3]),
        *(Question("neighbour", p.prompt, p.target) for p in fact.neighborhood_prompts[:3]),
    ]


def _ask(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, questions: list[Question]
) -> list[Answer]:
    """Answers to all questions, which share their forwards."""
    from rome_fast.prompt.greedy import greedy_tokens
    from rome_fast.prompt.ids import decode, text_ids
    from rome_fast.prompt.readback import read_targets
    from rome_fast.prompt.target import find_target_ids

    prompts = [text_ids(tok, question.prompt) for question in questions]
    targets = [find_target_ids(tok, question.prompt, question.target) for question in questions]
    readings = read_targets(model, tok, prompts, targets)
    said = greedy_tokens(model, tok, prompts, _FREE_TOKENS)
    return [
        Answer(
            reading.prob,
            decode(tok, tokens[: len(target)]).strip(),
            " ".join(decode(tok, tokens).split()),
        )
        for reading, target, tokens in zip(readings, targets, said, strict=True)
    ]


def _before_and_after(
    questions: list[Question], before: list[Answer], after: list[Answer]
) -> Table:
    """The toy's table: it says the object and little else."""
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


def _continuations(questions: list[Question], before: list[Answer], after: list[Answer]) -> Table:
    """The real model's table: how it goes on, and how likely the answer that is right now is."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    for title in ("prompt", "before", "after"):
        table.add_column(title)
    table.add_column("p(target)", no_wrap=True)
    for question, old, new in zip(questions, before, after, strict=True):
        probs = f"{question.target} {old.prob:.2f} -> {new.prob:.2f}"
        said = (Text(answer.free, style="bold" * (old.free != new.free)) for answer in (old, new))
        table.add_row(question.kind, question.prompt, *said, probs)
    return table


def _digest(model: PreTrainedModel) -> str:
    from rome_fast.model.hashes import fingerprint

    return fingerprint(*model.parameters())
