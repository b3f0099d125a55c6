"""``evaluate``: the verb, its arguments, and what its numbers depend on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from rome_fast.edit import opened
from rome_fast.errors import EditWarning, InvalidArgumentError, JudgeError, RecordWarning, warn
from rome_fast.evaluate.evaluation import Evaluation
from rome_fast.evaluate.journal import Journal
from rome_fast.evaluate.judge import Judge
from rome_fast.evaluate.loading import load_records
from rome_fast.evaluate.metrics import summarise
from rome_fast.evaluate.modes import judge_alone, judge_in_sequence
from rome_fast.evaluate.needs import lacking
from rome_fast.evaluate.protocols import Rules, Verdict, check_context, chosen
from rome_fast.evaluate.readings import judged
from rome_fast.evaluate.result import CaseResult, Checkpoint
from rome_fast.evaluate.setting import hash_of, rules_of, setting_of
from rome_fast.evaluate.stress import Stress
from rome_fast.moment.collect.ranks import Ranks
from rome_fast.timings import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.editor import Editor
    from rome_fast.evaluate.records import EditRecord
    from rome_fast.hparams import RomeHparams
    from rome_fast.moment.second_moment import SecondMoment

MODES = ("single", "sequential")


def evaluate(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    records: Iterable[EditRecord] | str | Path,
    mode: str = "single",
    hparams: RomeHparams | None = None,
    *,
    second_moment: SecondMoment | str | Path | Iterable[str] | None = None,
    context_templates: Sequence[str] | None = None,
    variant: str | None = None,
    backend: str = "auto",
    form: str = "weight",
    protocol: str | Sequence[str] = "rome",
    context: str = "qa",
    judge: Verdict | None = None,
    stress: bool = False,
    generate_tokens: int = 20,
    held_texts: Sequence[str] = (),
    window: int = 4,
    resume: str | Path | None = None,
    distributed: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Edit facts, and measure what the model says before and after; its weights are put back.

    Every definition is in docs/metrics.md. A request that cannot be edited is reported in its
    case's ``error``, and counts with what the model says without it. What a protocol needs and
    records do not have is said in a RecordWarning, and in the setting's ``notes``.

    Args:
        records: EditRecords, or whatever ``load_records`` reads.
        mode: ``"single"`` edits each record alone, on the model as it was given.
            ``"sequential"`` edits one after the other; each is judged right after its edit and
            again when all are in, both against the model before the run.
        protocol: whose rules are said at the head of the tables, "rome", "easyedit", "strict" or
            "wild"; several with commas between them. What the first three count is always measured;
            "wild" asks for more, answers to their natural stop.
        context: how "wild" puts a question: "qa", with an instruction, "one_shot", behind another
            that is answered, "question", alone, "chat", through the chat template, or a text with
            "{}" for it. A record in a chat is asked in its chat.
        judge: of "wild", (question, answer, target) -> bool; None: the target's words, no others.
            It is asked when the model has given all of its answers.
        stress: also ask the edited prompt behind 50 and 200 tokens of other text, and negated, and
            in single mode other facts of its subject among the records.
        generate_tokens: length of the greedy continuations of the edited prompt and of the
            record's generation prompts, before and after; 0 for none.
        held_texts: texts that have nothing to do with the edits, for perplexity and KL drift. In
            single mode they are read once for each record.
        form: of the edits; those of another than ``"weight"`` are judged one by one.
        window: how many records of single mode are searched and judged together; as many of them
            as fit in memory share a forward.
        resume: a file that keeps finished cases. Where it is there already, its cases are not done
            again.
        distributed: share the records of single mode among the processes of torch.distributed
            (torchrun), which must all call this; every one of them gets the whole result.
        progress: show bars.

    The other arguments are those of ``edit``.

    Returns:
        An Evaluation. The model is as before: weights to the bit, training mode, hooks.

    Raises:
        JudgeError: the judge has failed; the error has all answers, and says where they are kept.
        RomeFastError: a subclass says what was wrong; the weights are as before.
    """
    _check(mode, generate_tokens, held_texts, window, distributed)
    rules = Rules(chosen(protocol), context)
    check_context(context)
    ranks = Ranks.current() if distributed else Ranks()
    records = load_records(records)
    lacks = lacking(rules.protocols, records)
    shared = (hparams, variant, backend, context_templates, second_moment)
    with opened(model, tok, *shared, form=form) as editor:
        notes, editor.notes = editor.notes, []
        for note in notes:
            warn(note, EditWarning)
        for note in lacks:
            warn(note, RecordWarning)
        setting = {
            **setting_of(editor, records, held_texts),
            "mode": mode,
            "form": form,
            "generate_tokens": generate_tokens,
            **rules_of(rules),
            **({"stress": True} if stress else {}),
            "window": window,
            "processes": ranks.size,
            "notes": [*notes, *lacks],
        }
        if not ranks.all_equal(int(hash_of(setting), 16) >> 193):
            raise InvalidArgumentError(
                "distributed=True, and the processes have different models, records or arguments: "
                "give all the same"
            )
        asker = Judge(
            *(editor.model, tok, editor.projection, records, generate_tokens, held_texts, rules),
            Stress(editor.model, tok, records, alone=mode == "single") if stress else None,
        )
        journal = Journal(resume, setting, ranks)  # whoever will judge what it keeps
        if rules.lets_answer:
            setting["judge"] = "words" if judge is None else "own"
        run = _Run(editor, asker, judge, ranks, progress and ranks.rank == 0)
        if mode == "single":
            return run.single(setting, journal, window)
        return run.sequential(setting, journal)


class _Run:
    """One evaluation, from the questions to the result."""

    def __init__(
        self, editor: Editor, judge: Judge, verdict: Verdict | None, ranks: Ranks, progress: bool
    ) -> None:
        self._editor, self._judge, self._verdict = editor, judge, verdict
        self._ranks, self._progress = ranks, progress
        self._drift: dict[str, dict[str, float]] = {}

    def single(self, setting: dict[str, Any], journal: Journal, window: int) -> Evaluation:
        mine = range(len(self._judge.records))[self._ranks.rank :: self._ranks.size]
        todo = [number for number in mine if number not in journal.cases]
        cases = [journal.cases[number] for number in mine if number in journal.cases]
        self._begin(todo)
        with self._bar(len(mine), len(cases)) as bar:
            for start in range(0, len(todo), window):
                made = judge_alone(self._editor, self._judge, todo[start : start + window])
                journal.add(made)
                cases += made
                bar.update(len(made))
        cases = self._judged(setting, cases, (), journal)
        result = self._result(setting, self._ranks.gather(cases), ())
        if self._drift:
            after = {name: result.metrics["after"][name].mean for name in self._drift["before"]}
            self._drift["after"] = after
        return result

    def sequential(self, setting: dict[str, Any], journal: Journal) -> Evaluation:
        numbers = range(len(self._judge.records))
        self._begin(numbers)
        with self._bar(len(numbers), 0) as bar:
            cases, retention = judge_in_sequence(
                self._editor, self._judge, numbers, journal, bar.update
            )
        if self._drift:
            self._drift["after"] = self._judge.drift()
        self._editor.edits.rewind()
        cases = self._judged(setting, cases, retention, journal)
        return self._result(setting, cases, retention)

    def _begin(self, numbers: Sequence[int]) -> None:
        self._judge.begin(numbers, progress=self._progress)
        if self._judge.texts:
            self._drift["before"] = self._judge.drift()

    def _bar(self, total: int, done: int) -> tqdm:
        show = self._progress
        return progress_bar(show=show, total=total, initial=done, desc="cases", unit="case")

    def _judged(
        self,
        setting: dict[str, Any],
        cases: list[CaseResult],
        retention: Sequence[Checkpoint],
        journal: Journal,
    ) -> list[CaseResult]:
        """With the verdicts of the user's judge, if there is one."""
        if self._verdict is None:
            return cases
        try:
            return judged(cases, self._verdict)
        except InvalidArgumentError as error:
            asked = self._result({**setting, "judge": "words"}, cases, retention)
            where = "save_readings of this error's evaluation writes them"
            if journal.path is not None:
                path = journal.path.with_name(f"{journal.path.name}.readings.jsonl")
                asked.save_readings(path)
                where = f"they are in {path}"
            raise JudgeError(
                f"{error}. No answer is lost: {where}, and Evaluation.from_readings judges them "
                "without the model",
                asked,
            ) from error

    def _result(
        self,
        setting: dict[str, Any],
        cases: Sequence[CaseResult],
        retention: Sequence[Checkpoint],
    ) -> Evaluation:
        cases = sorted(cases, key=lambda case: case.index)
        notes = self._judge.notes(cases)
        for note in notes:
            warn(note, EditWarning)
        return Evaluation(
            setting={**setting, "notes": [*setting["notes"], *notes]},
            metrics=summarise(cases, setting["n_skipped"]),
            cases=tuple(cases),
            drift=self._drift,
            retention=tuple(retention),
            seconds=dict(self._judge.timings.seconds),
        )


def _check(
    mode: str,
    generate_tokens: int,
    held_texts: Sequence[str],
    window: int,
    distributed: bool,
) -> None:
    if mode not in MODES:
        raise InvalidArgumentError(f"mode must be one of {MODES}, got {mode!r}")
    for name, value, least in (("generate_tokens", generate_tokens, 0), ("window", window, 1)):
        if type(value) is not int or value < least:
            raise InvalidArgumentError(
                f"{name} must be a whole number of {least} or more, got {value!r}"
            )
    if isinstance(held_texts, str) or not all(isinstance(text, str) for text in held_texts):
        raise InvalidArgumentError(f"held_texts must be a list of texts, got {held_texts!r:.80}")
    if distributed and mode == "sequential":
        raise InvalidArgumentError(
            "distributed= is for mode='single': in a sequence each edit waits for the one before it"
        )
