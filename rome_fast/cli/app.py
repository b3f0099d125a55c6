"""The ``rome-fast`` command: a demonstration, edits, statistics, and what is installed.

Exit codes: 0 done, 1 an edit went through but the model does not say its target (nothing is
saved), 2 bad input or an error, told in one line, 130 interrupted with Ctrl-C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich import box
from rich.table import Table

from rome_fast.cli import stats
from rome_fast.cli.bench import bench
from rome_fast.cli.common import (
    EDIT_FAILED,
    console,
    no_loading_bars,
    one_line_errors,
)
from rome_fast.cli.doctor import doctor
from rome_fast.cli.edit import edit
from rome_fast.cli.evaluate import evaluate
from rome_fast.cli.locate import locate, plan
from rome_fast.cli.log import apply, export, log
from rome_fast.cli.probe import probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(stats.app, name="stats")
app.command()(edit)
app.command()(probe)
app.command()(doctor)
app.command()(evaluate)
app.command()(bench)
app.command()(locate)
app.command()(plan)
app.command()(log)
app.command()(apply)
app.command()(export)


@app.callback()
def main_options() -> None:
    """Edit one fact of a language model: fast, undoable, and truthful about it."""


@app.command()
def demo() -> None:
    """Edit a fact of the embedded model, show what changed and what did not, and undo it."""
    import rome_fast
    from rome_fast.demo import load

    with one_line_errors():
        no_loading_bars()
        model, tok, facts = load()
        fact = next(f for f in facts if f.subject == "Ray Charles" and f.target == "piano")
        prompts = [
            ("rewrite", fact.prompt.replace("{}", fact.subject), fact.target_new),
            *(("paraphrase", text, fact.target_new) for text in fact.paraphrase_prompts[:2]),
            *(("neighbour", p.prompt, p.target) for p in fact.neighborhood_prompts[:3]),
        ]
        request = rome_fast.EditRequest(fact.prompt, fact.subject, fact.target_new)
        bits = _digest(model)
        before = [_say(model, tok, text, target) for _, text, target in prompts]
        result = rome_fast.edit(model, tok, request)
        after = [_say(model, tok, text, target) for _, text, target in prompts]
    console.print(f"{fact.subject}: {fact.target} -> {fact.target_new}")
    console.print(_before_and_after(prompts, before, after))
    console.print(str(result), markup=False)
    edited = _digest(model)
    result.revert()
    same = _digest(model) == bits
    console.print(
        f"undone: weights {bits[:8]} -> {edited[:8]} -> {_digest(model)[:8]} (sha256), "
        f"{'bit-identical to before' if same else 'NOT THE SAME'}"
    )
    if not (result.success and same):
        raise typer.Exit(EDIT_FAILED)


@app.command()
def info() -> None:
    """Say what is installed, which kernels run natively, and why others do not."""
    from rome_fast.info import main as show

    show()


def _before_and_after(
    prompts: list[tuple[str, str, str]],
    before: list[tuple[str, str]],
    after: list[tuple[str, str]],
) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "prompt", "target", "probability", "model says"):
        table.add_column(column, no_wrap=column != "prompt")
    for prompt, (p_before, said_before), (p_after, said_after) in zip(
        prompts, before, after, strict=True
    ):
        table.add_row(*prompt, f"{p_before} -> {p_after}", f"{said_before} -> {said_after}")
    return table


def _say(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, text: str, target: str
) -> tuple[str, str]:
    """Probability of the target after the text, and two greedy tokens."""
    from rome_fast.prompt.ids import text_ids
    from rome_fast.prompt.readback import greedy_continuations, read_targets
    from rome_fast.prompt.target import find_target_ids

    prompt_ids = text_ids(tok, text)
    [reading] = read_targets(model, tok, [prompt_ids], [find_target_ids(tok, text, target)])
    return f"{reading.prob:.3f}", greedy_continuations(model, tok, [prompt_ids], 2)[0].strip()


def _digest(model: PreTrainedModel) -> str:
    from rome_fast.model.hashes import fingerprint

    return fingerprint(*model.parameters())


def main() -> None:
    """Entry point of the console script."""
    app()
