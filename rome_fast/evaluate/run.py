"""``evaluate``: the verb, its arguments, and what its numbers depend on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rome_fast.edit import opened
from rome_fast.errors import EditWarning, InvalidArgumentError, RecordWarning, warn
from rome_fast.evaluate.capability.measure import harness_for
from rome_fast.evaluate.course import Run
from rome_fast.evaluate.evaluation import Evaluation
from rome_fast.evaluate.journal import Journal
from rome_fast.evaluate.judge import Judge
from rome_fast.evaluate.loading import load_records
from rome_fast.evaluate.needs import lacking
from rome_fast.evaluate.protocols import Rules, Verdict, check_context, check_judge, chosen
from rome_fast.evaluate.setting import hash_of, rules_of, setting_of
from rome_fast.evaluate.stress import Stress
from rome_fast.moment.collect.ranks import Ranks
from rome_fast.prompt.chat import Chat, Frame

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    judge: Verdict = "exact",
    stress: bool = False,
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
        judge: of "wild": "exact", the target's words and no others; "contained", they and others;
            or (question, answer, target) -> bool.
            It is asked when the model has given all of its answers.
        stress: also ask the edited prompt behind 50 and 200 tokens of other text, and negated, and
            in single mode other facts of its subject among the records.
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
        JudgeError: the judge has failed; the error has all answers, and says where they are kept.
        RomeFastError: a subclass says what was wrong; the weights are as before.
    """
    _check(mode, generate_tokens, held_texts, window, distributed)
    rules = Rules(chosen(protocol), context)
    check_context(context)
    check_judge(judge)
    if context == "chat":
        Frame.of(tok, Chat())  # an error without a template
    ranks = Ranks.current() if distributed else Ranks()
    records = load_records(records)
    lacks = lacking(rules.protocols, records)
    harness = harness_for(capability, capability_limit, mode, progress=progress)
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
            **({} if harness is None else {"capability": harness.setting}),
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
            setting["judge"] = judge if isinstance(judge, str) else "own"
        run = Run(editor, asker, judge, ranks, progress=progress and ranks.rank == 0)
        if mode == "single":
            return run.single(setting, journal, window)
        return run.sequential(setting, journal, harness)


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
