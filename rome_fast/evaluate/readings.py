"""The answers of protocols that let the model answer, as a file that people and judges work on.

JSONL: first what was evaluated, then one answer a line. A verdict (``right``) may be changed by
hand; all figures of the answers follow from the file alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.metrics import read_values
from rome_fast.evaluate.protocols import GROUPS, JUDGES, Verdict, verdict
from rome_fast.evaluate.result import CaseResult, EvaluationData, Reading, Stage
from rome_fast.prompt.answers import KINDS, Answer
from rome_fast.text_files import not_utf8

FORMAT = "rome_fast.readings.1"

_TEXTS = ("question", "prompt", "target", "answer")
_CHOICES = {"group": GROUPS, "kind": KINDS}

# (index of the case, name of the stage)
_Place = tuple[int, str]


def judged(cases: Sequence[CaseResult], judge: Verdict) -> list[CaseResult]:
    """The cases with this judge's verdicts, and the figures that follow from them.

    Raises:
        InvalidArgumentError: the judge has raised, or has returned no bool.
    """

    def again(reading: Reading) -> Reading:
        answer = Answer(reading.answer, has_ended=reading.kind != "endless")
        return replace(reading, right=verdict(judge, reading.question, answer, reading.target))

    return [
        replace(
            case,
            stages={name: _with(of, map(again, of.readings)) for name, of in case.stages.items()},
        )
        for case in cases
    ]


def n_changed(cases: Sequence[CaseResult], judge: str) -> int:
    """How many verdicts are not those of the words, by the judge's name."""
    return sum(
        reading.right != (reading.kind in JUDGES[judge])
        for case in cases
        for stage in case.stages.values()
        for reading in stage.readings
    )


def written(evaluation: EvaluationData) -> str:
    """The text of the file."""
    lines = [
        {"case": case.index, "case_id": case.case_id, "stage": name, **asdict(reading)}
        for case in evaluation.cases
        for name, stage in case.stages.items()
        for reading in stage.readings
    ]
    cases = [
        replace(case, stages=dict.fromkeys(case.stages, Stage({})), generation_prompts=())
        for case in evaluation.cases
    ]
    head = {
        "format": FORMAT,
        "setting": evaluation.setting,
        "n_readings": len(lines),
        "cases": [asdict(case) for case in cases],
    }
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (head, *lines))


def read(path: str | Path) -> tuple[dict[str, Any], list[CaseResult]]:
    """The setting, and the cases with their answers and the figures that follow from them.

    Raises:
        InvalidArgumentError: there is no such file, or it holds something else; names the line.
    """
    numbered = _lines(Path(path))
    number, head = next(numbered, (1, None))
    if not isinstance(head, Mapping) or head.get("format") != FORMAT:
        raise _error(path, number, f"must say format {FORMAT!r}, as save_readings writes it")
    try:
        setting, n_readings = dict(head["setting"]), int(head["n_readings"])
        cases = [CaseResult.from_json(case) for case in head["cases"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _error(path, number, f"is damaged: {error!r}") from error
    found: dict[_Place, list[Reading]] = {
        (case.index, stage): [] for case in cases for stage in case.stages
    }
    for number, line in numbered:
        if reason := _wrong_with(line, found):
            raise _error(path, number, reason)
        told = {field.name: line[field.name] for field in fields(Reading)}
        found[line["case"], line["stage"]].append(Reading(**told))
    if not n_readings:
        raise InvalidArgumentError(
            f"readings {path} holds no answers: evaluate with protocol='wild'"
        )
    n_found = sum(map(len, found.values()))
    if n_found != n_readings or not n_found:
        raise _error(
            path,
            number,
            f"is the last, after {n_found} answers of {n_readings}: verdicts may be changed, but "
            "each answer of protocol 'wild' must stay",
        )
    return setting, [
        replace(
            case,
            stages={name: _with(of, found[case.index, name]) for name, of in case.stages.items()},
        )
        for case in cases
    ]


def _with(stage: Stage, readings: Iterable[Reading]) -> Stage:
    kept = tuple(readings)
    return replace(stage, readings=kept, values={**stage.values, **read_values(kept)})


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeError as error:
        raise InvalidArgumentError(f"readings {path} {not_utf8(path, error)}") from error
    except OSError as error:
        raise InvalidArgumentError(f"readings {path} cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise _error(path, number, f"is not JSON: {error.msg}") from error


def _wrong_with(line: Any, known: Mapping[_Place, Any]) -> str:
    """Why a line is no reading; empty where it is one."""
    if not isinstance(line, Mapping):
        return f"must be an object, got {line!r:.60}"
    names = ("case", "stage", *_TEXTS, *_CHOICES, "right")
    if missing := [name for name in names if name not in line]:
        return f"lacks {', '.join(missing)}"
    for name in ("stage", *_TEXTS, *_CHOICES):
        if not isinstance(line[name], str):
            return f"{name} must be text, got {line[name]!r:.60}"
    for name, choices in _CHOICES.items():
        if line[name] not in choices:
            return f"{name} must be one of {', '.join(choices)}, got {line[name]!r:.60}"
    if not isinstance(line["right"], bool):
        return f"right must be true or false, got {line['right']!r:.60}"
    if type(line["case"]) is not int or (line["case"], line["stage"]) not in known:
        return f"case {line['case']!r:.60}, stage {line['stage']!r:.60} is none of the first line's"
    return ""


def _error(path: str | Path, number: int, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"readings {path}: line {number} {reason}")
