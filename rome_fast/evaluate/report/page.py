"""An Evaluation as one page of HTML that needs nothing else: no network, no scripts, no fonts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.atomic_files import write_text
from rome_fast.evaluate.capability import table as capability
from rome_fast.evaluate.report.pictures import norm_histogram, retention_curve
from rome_fast.evaluate.report.rows import (
    COLUMNS,
    STAGES,
    cells,
    columns_of,
    headline,
    interval,
    is_share,
    metric_rows,
    number,
    probability,
    rules,
    worst_first,
)

if TYPE_CHECKING:
    from rome_fast.evaluate.result import CaseResult, EvaluationData, Stage

# Cases that are shown at once; the others are folded.
_OPEN = 25

# The headline figures: the first of each that was measured.
_CARDS = {
    "Efficacy": ("ES", "rewrite_exact"),
    "Paraphrases": ("PS", "rephrase_exact"),
    "Neighbours": ("NS", "neighborhood_unchanged"),
    "Score": ("S",),
}


def write_page(evaluation: EvaluationData, path: str | Path) -> None:
    """Write the page into a file, atomically."""
    write_text(path, page(evaluation))


def page(evaluation: EvaluationData) -> str:
    """The page's text. What models and records say is escaped."""
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("rome_fast.evaluate.report", "")
    template = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    cases = worst_first(evaluation)
    norms = [case.relative_norm for case in cases if case.relative_norm is not None]
    points = [(point.n_edits, point.retained) for point in evaluation.retention]
    return template.get_template("page.html").render(
        headline=headline(evaluation),
        rules=rules(evaluation),
        cards=_cards(evaluation),
        columns=[COLUMNS[column] for column in columns_of(evaluation)],
        rows=_rows(evaluation),
        drift=_drift(evaluation),
        capability=_capability(evaluation),
        retention=retention_curve(points) if points else None,
        histogram=norm_histogram(norms) if norms else None,
        shown=[_case(case) for case in cases[:_OPEN]],
        folded=[_case(case) for case in cases[_OPEN:]],
        settings=_flat(evaluation.setting),
        seconds=evaluation.seconds,
    )


def _cards(evaluation: EvaluationData) -> list[dict[str, str]]:
    cards = []
    before, after = (evaluation.metrics.get(stage, {}) for stage in ("before", "after"))
    for title, names in _CARDS.items():
        name = next((name for name in names if name in after), None)
        if name is not None:
            then = number(name, before[name].mean) if name in before else ""
            now = interval(name, after[name])
            cards.append({"title": title, "name": name, "before": then, "after": now})
    return cards


def _rows(evaluation: EvaluationData) -> list[dict[str, Any]]:
    columns = columns_of(evaluation)
    return [
        {
            "group": row.group,
            "name": row.name,
            "meaning": row.meaning,
            "unit": "%" if is_share(row.name) else "",
            "values": cells(row, columns),
            "n": row.n,
        }
        for row in metric_rows(evaluation)
    ]


def _drift(evaluation: EvaluationData) -> list[tuple[str, str, str]]:
    return [
        (STAGES[stage], f"{drift['perplexity']:.4g}", f"{drift['kl']:.4g}")
        for stage, drift in evaluation.drift.items()
    ]


def _capability(evaluation: EvaluationData) -> dict[str, Any] | None:
    """Of the tasks of lm-evaluation-harness."""
    stages = {STAGES[stage]: of.tasks for stage, of in evaluation.capability.items()}
    if not stages:
        return None
    return {
        "explained": capability.EXPLAINED,
        "head": capability.head(stages),
        "rows": capability.rows(stages),
    }


def _case(case: CaseResult) -> dict[str, Any]:
    before, after = (case.stages.get(stage) for stage in ("before", "after"))
    said = [stage.generations if stage else () for stage in (before, after)]
    texts = [
        {"prompt": prompt, "before": _nth(said[0], i), "after": _nth(said[1], i)}
        for i, prompt in enumerate(case.generation_prompts)
    ]
    values = after.values if after else {}
    return {
        "id": case.case_id,
        "prompt": case.request.asked,
        "target": case.request.target.strip(),
        "probs": [probability(stage.values if stage else {}) for stage in (before, after)],
        "holds": values.get("rewrite_exact") == 1,
        "paraphrases": _percent(values.get("rephrase_exact")),
        "kept": _percent(values.get("neighborhood_unchanged")),
        "norm": "" if case.relative_norm is None else f"{case.relative_norm:.1%}",
        "answers": _answers(before, after),
        "read": _read(before, after),
        "texts": texts if any(map(len, said)) else [],
        "notes": [*([case.error] if case.error else []), *case.warnings],
    }


def _answers(before: Stage | None, after: Stage | None) -> list[dict[str, Any]]:
    """A row a question: who says what before and after, and whether the likeliest word changed."""
    if before is None or after is None:
        return []
    return [
        {
            "kind": kind.removesuffix("_true").removesuffix("_new"),
            "prompt": then.prompt,
            "target": then.target.strip(),
            "probs": f"{first.prob:.3f} → {then.prob:.3f}",
            "says": f"{first.next.strip()} → {then.next.strip()}",
            "changed": first.next != then.next,
        }
        for kind, answers in after.answers.items()
        for first, then in zip(before.answers.get(kind, ()), answers, strict=False)
    ]


def _read(before: Stage | None, after: Stage | None) -> list[dict[str, Any]]:
    """A row a free answer: what is said to its natural stop before and after, and the verdict."""
    if before is None or after is None:
        return []
    return [
        {
            "group": then.group,
            "question": then.question,
            "target": then.target.strip(),
            "before": f"{first.answer} ({first.kind})",
            "after": f"{then.answer} ({then.kind})",
            "right": then.right,
        }
        for first, then in zip(before.readings, after.readings, strict=False)
    ]


def _nth(texts: tuple[str, ...], i: int) -> str:
    return texts[i] if i < len(texts) else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _flat(setting: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names with dots, and values as JSON."""
    rows = []
    for name, value in setting.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((prefix + name, text))
    return rows
