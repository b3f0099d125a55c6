"""``evaluate``: the verb, its arguments, and what its numbers depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from rome_fast.edit import opened
from rome_fast.errors import EditWarning, InvalidArgumentError, warn
from rome_fast.evaluate.capability.measure import Harness
from rome_fast.evaluate.evaluation import Evaluation
from rome_fast.evaluate.journal import Journal
from rome_fast.evaluate.judge import Judge
from rome_fast.evaluate.loading import load_records
from rome_fast.evaluate.metrics import summarise
from rome_fast.evaluate.modes import judge_alone, judge_in_sequence
from rome_fast.evaluate.protocols import CONTEXTS, PROTOCOLS, Rules, Verdict, chosen
from rome_fast.evaluate.result import CaseResult, Checkpoint
from rome_fast.model.hashes import config_hash, fingerprint, model_hash, tokenizer_hash, versions
from rome_fast.moment.collect.ranks import Ranks
from rome_fast.results import second_moment_name
from rome_fast.timings import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.editor import Editor
    from rome_fast.evaluate.capability.result import Capability
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
    generate_tokens: int = 20,
    held_texts: Sequence[str] = (),
    capability: str | Path | Sequence[str | Path] = (),
    capability_limit: int | None = None,
    window: int = 4,
    resume: str | Path | None = None,
    distributed: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Edit facts, and measure what the model says before and after; its weights are put back.

    Every definition is in docs/metrics.md. A request that cannot be edited is reported in its
    case's ``error``, and counts with what the model says without it.

    Args:
        records: EditRecords, or whatever ``load_records`` reads.
        mode: ``"single"`` edits each record alone, on the model as it was given.
            ``"sequential"`` edits one after the other; each is judged right after its edit and
            again when all are in, both against the model before the run.
        protocol: whose rules are said at the head of the tables, "rome", "easyedit", "strict" or
            "wild"; several with commas between them. What the first three count is always measured;
            "wild" asks for more, answers to their natural stop.
        context: how "wild" puts a question: "qa", with an instruction, or "question", alone; a
            record in a chat is asked in its chat.
        judge: of "wild", (question, answer, target) -> bool; None: the target's words, no others.
        generate_tokens: length of the greedy continuations of the edited prompt and of the
            record's generation prompts, before and after; 0 for none.
        held_texts: texts that have nothing to do with the edits, for perplexity and KL drift. In
            single mode they are read once for each record.
        capability: in sequential mode, tasks of lm-evaluation-harness that the unedited model is
            measured on, and again the one with all edits, as ``measure_capability`` does.
        capability_limit: so many samples of each of these tasks at most.
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
        RomeFastError: a subclass says what was wrong; the weights are as before.
    """
    _check(mode, generate_tokens, held_texts, window, distributed)
    rules = Rules(chosen(protocol), context, judge)
    if context not in CONTEXTS:
        raise InvalidArgumentError(f"context must be one of {tuple(CONTEXTS)}, got {context!r}")
    ranks = Ranks.current() if distributed else Ranks()
    records = load_records(records)
    harness = _harness(capability, capability_limit, mode, progress)
    shared = (hparams, variant, backend, context_templates, second_moment)
    with opened(model, tok, *shared, form=form) as editor:
        notes, editor.notes = editor.notes, []
        for note in notes:
            warn(note, EditWarning)
        setting = {
            **_setting(editor, records, held_texts),
            "mode": mode,
            "form": form,
            "generate_tokens": generate_tokens,
            **_rules(rules),
            **({} if harness is None else {"capability": harness.setting}),
            "window": window,
            "processes": ranks.size,
            "notes": notes,
        }
        if not ranks.all_equal(int(_hash(setting), 16) >> 193):
            raise InvalidArgumentError(
                "distributed=True, and the processes have different models, records or arguments: "
                "give all the same"
            )
        asker = Judge(
            editor.model, tok, editor.projection, records, generate_tokens, held_texts, rules
        )
        run = _Run(editor, asker, ranks, progress and ranks.rank == 0)
        if mode == "single":
            return run.single(setting, Journal(resume, setting, ranks), window)
        return run.sequential(setting, Journal(resume, setting, ranks), harness)


class _Run:
    """One evaluation, from the questions to the result."""

    def __init__(self, editor: Editor, judge: Judge, ranks: Ranks, progress: bool) -> None:
        self._editor, self._judge = editor, judge
        self._ranks, self._progress = ranks, progress
        self._drift: dict[str, dict[str, float]] = {}
        self._capability: dict[str, Capability] = {}

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
        result = self._result(setting, self._ranks.gather(cases), ())
        if self._drift:
            after = {name: result.metrics["after"][name].mean for name in self._drift["before"]}
            self._drift["after"] = after
        return result

    def sequential(
        self, setting: dict[str, Any], journal: Journal, harness: Harness | None
    ) -> Evaluation:
        numbers = range(len(self._judge.records))
        self._begin(numbers)
        self._measure("before", harness)
        with self._bar(len(numbers), 0) as bar:
            cases, retention = judge_in_sequence(
                self._editor, self._judge, numbers, journal, bar.update
            )
        if self._drift:
            self._drift["after"] = self._judge.drift()
        self._measure("after", harness)
        self._editor.edits.rewind()
        return self._result(setting, cases, retention)

    def _begin(self, numbers: Sequence[int]) -> None:
        self._judge.begin(numbers, progress=self._progress)
        if self._judge.texts:
            self._drift["before"] = self._judge.drift()

    def _measure(self, stage: str, harness: Harness | None) -> None:
        if harness is not None:
            self._capability[stage] = harness.measure(self._judge.model, self._judge.tok)
            self._judge.timings.lap("capability")

    def _bar(self, total: int, done: int) -> tqdm:
        show = self._progress
        return progress_bar(show=show, total=total, initial=done, desc="cases", unit="case")

    def _result(
        self,
        setting: dict[str, Any],
        cases: Sequence[CaseResult],
        retention: Sequence[Checkpoint],
    ) -> Evaluation:
        cases = sorted(cases, key=lambda case: case.index)
        return Evaluation(
            setting=setting,
            metrics=summarise(cases),
            cases=tuple(cases),
            drift=self._drift,
            retention=tuple(retention),
            seconds=dict(self._judge.timings.seconds),
            capability=self._capability,
        )


def _harness(
    capability: str | Path | Sequence[str | Path], limit: int | None, mode: str, progress: bool
) -> Harness | None:
    """The tasks, fetched before anything is edited; None where there are none."""
    if not capability:
        if limit is not None:
            raise InvalidArgumentError(
                f"capability_limit={limit!r} is of the tasks in capability=, which names none"
            )
        return None
    if mode == "single":
        raise InvalidArgumentError(
            "capability= is for mode='sequential': in single mode each record is edited alone and "
            "taken back, so that there are as many edited models as records"
        )
    return Harness(capability, limit, progress=progress)


def _rules(rules: Rules) -> dict[str, Any]:
    """Of the protocols; as far as they concern what is asked."""
    own = "own" if rules.judge is not None else "words"
    answered = {"context": rules.context, "judge": own} if rules.lets_answer else {}
    return {"protocols": [asdict(PROTOCOLS[name]) for name in rules.protocols], **answered}


def _setting(
    editor: Editor, records: Sequence[EditRecord], held_texts: Sequence[str]
) -> dict[str, Any]:
    """What the numbers depend on, besides the arguments that only ``evaluate`` has; JSON-able."""
    model, projection, moment = editor.model, editor.projection, editor.second_moment
    return {
        "model": {
            "name": Path(str(model.config._name_or_path)).name,
            "class": type(model).__name__,
            "config": config_hash(model),
            "weights": model_hash(editor.spec),
            "dtype": str(projection.weight.dtype).removeprefix("torch."),
            "device": projection.weight.device.type,
            "tokenizer": tokenizer_hash(editor.tok),
        },
        "weight_name": f"{projection.name}.weight",
        "hparams": json.loads(json.dumps(asdict(editor.hparams))),
        "backend": editor.backend,
        "second_moment": "none" if editor.form != "weight" else second_moment_name(moment),
        "second_moment_hash": None if moment is None else fingerprint(moment.moment_sum),
        "context_templates": list(editor.context_templates),
        "n_records": len(records),
        "records": _hash([asdict(record) for record in records]),
        "held_texts": {"n": len(held_texts), "hash": _hash(list(held_texts))},
        "versions": versions(),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
