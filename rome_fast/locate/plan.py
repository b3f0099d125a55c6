"""Plan: what trial edits found in each layer, and the hyper-parameters that they recommend."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.hparams import RomeHparams

if TYPE_CHECKING:
    from rich.console import Group

# Scores are a tie within one request's worth, and at most this: so much they differ by chance.
_WIDEST_TIE = 0.1
_COLUMNS = ("layer", "traced", "success", "paraphr.", "locality", "score", "update", "loss")


@dataclass(frozen=True)
class LayerTrial:
    """What editing each request alone in one layer did; all of it was undone.

    Attributes:
        success: share of the requests whose target is the model's answer after their edit.
        paraphrase: share of their paraphrases after which it is likelier than the record's true
            object, or where it names none than the unedited model's answer (its first token than
            that one's), a mean over requests; None where no request brings any.
        locality: share of prompts about other subjects whose likeliest answer stays, a mean over
            requests; None where there is none to ask.
        relative_norm: mean norm of the updates over the norm of the weight; None if none was made.
        loss: mean loss at the end of the searches for v*; None likewise.
        unconverged: in how many of them it was still 0.5 or more.
        failures: why no update was made, one line per request.
    """

    layer: int
    n_requests: int
    success: float
    paraphrase: float | None
    locality: float | None
    relative_norm: float | None
    loss: float | None
    unconverged: int
    failures: tuple[str, ...]

    @property
    def score(self) -> float:
        """Harmonic mean of success, paraphrase and locality, as far as they were measured."""
        parts = [p for p in (self.success, self.paraphrase, self.locality) if p is not None]
        return 0.0 if min(parts) == 0 else len(parts) / sum(1 / part for part in parts)


def tied_of(trials: Sequence[LayerTrial]) -> list[LayerTrial]:
    """The highest score, and those that differ from it by chance.

    Where all scores are zero, success is compared instead.
    """
    measure = attrgetter("score" if any(trial.score for trial in trials) else "success")
    tie = min(_WIDEST_TIE, 1 / trials[0].n_requests)
    top = max(map(measure, trials))
    return [trial for trial in trials if measure(trial) >= top - tie]


def best_of(trials: Sequence[LayerTrial]) -> LayerTrial:
    """Of the layers with the highest score the smallest update, then the lowest layer.

    An update that changes less of the weight does less harm to what was never asked.
    """
    tied = tied_of(trials)
    return min(tied, key=lambda t: (t.relative_norm is None, t.relative_norm or 0.0, t.layer))


@dataclass(frozen=True)
class Plan:
    """Which layer to edit, and why: the answer of ``suggest_layer``.

    Attributes:
        trials: one per layer that was tried, from low to high.
        effects: for each layer of the model, how much of its answer's probability returns when
            the MLPs around that layer are restored at the subject's last token; mean over the
            requests.
        hparams: recommended, with the layer.
        reasons: in words, the most important first.
        settings: what it was measured with.
    """

    trials: tuple[LayerTrial, ...]
    effects: tuple[float, ...]
    hparams: RomeHparams
    reasons: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def layer(self) -> int:
        """The recommended layer."""
        return self.hparams.layer

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able; ``score`` is added to each trial."""
        return {
            "layer": self.layer,
            "reasons": list(self.reasons),
            "trials": [{**dataclasses.asdict(t), "score": t.score} for t in self.trials],
            "effects": list(self.effects),
            "hparams": dataclasses.asdict(self.hparams),
            "settings": dict(self.settings),
        }

    def save(self, path: str | Path) -> None:
        """Write ``to_dict()`` as JSON; ``hparams.save`` writes what ``edit`` reads."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def __rich__(self) -> Group:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        # Within 60 columns.
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        for column in _COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        for trial in self.trials:
            table.add_row(
                f"{'> ' if trial.layer == self.layer else ''}{trial.layer}",
                f"{self.effects[trial.layer]:+.3f}",
                *map(_percent, (trial.success, trial.paraphrase, trial.locality, trial.score)),
                _percent(trial.relative_norm, digits=2),
                "-" if trial.loss is None else f"{trial.loss:.3f}",
                style="bold" if trial.layer == self.layer else None,
            )
        return Group(table, *(Text(f"- {reason}") for reason in self.reasons))

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=120, color_system=None)
        console.print(self)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return text.strip("\n")


def _percent(share: float | None, digits: int = 0) -> str:
    return "-" if share is None else f"{share:.{digits}%}"
