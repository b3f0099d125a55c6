"""What an evaluation found: the types that metrics, reports and files share. All frozen and plain.

docs/metrics.md defines every name in ``values`` and ``metrics``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.capability.result import Capability
from rome_fast.evaluate.interval import Metric
from rome_fast.types import EditRequest

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = "rome_fast.evaluation.1"


@dataclass(frozen=True)
class Answer:
    """What the model says of one question.

    Attributes:
        prob: of the whole target.
        exact: whether greedy decoding says it.
        next: the likeliest token after the prompt.
    """

    prompt: str
    target: str
    prob: float
    exact: bool
    next: str


@dataclass(frozen=True)
class Reading:
    """A question that the model answered by itself, and what the judge made of it.

    Attributes:
        group: "rewrite", "rephrase" or "neighborhood".
        question: the record's prompt.
        prompt: the question as it was put.
        kind: of the answer to the target: "exact", "contained", "other" or "endless".
        right: the verdict.
    """

    group: str
    question: str
    prompt: str
    target: str
    answer: str
    kind: str
    right: bool


@dataclass(frozen=True)
class Stage:
    """One case under one state of the model.

    Attributes:
        values: by the metric's name.
        generations: greedy continuations of the case's ``generation_prompts``, without them;
            empty where none were asked for.
        answers: to every question, by the kind of question (docs/metrics.md).
        readings: where the protocol lets the model answer by itself.
    """

    values: Mapping[str, float]
    generations: tuple[str, ...] = ()
    answers: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Stage:
        """The stage that ``dataclasses.asdict`` has made ``fields`` of; older ones lack some."""
        answers = {
            name: tuple(Answer(**answer) for answer in of)
            for name, of in fields.get("answers", {}).items()
        }
        readings = tuple(Reading(**reading) for reading in fields.get("readings", ()))
        return cls(fields["values"], tuple(fields["generations"]), answers, readings)


@dataclass(frozen=True)
class CaseResult:
    """One edit and how it fared.

    Attributes:
        index: position among the records.
        generation_prompts: the edited prompts, then those of the record.
        stages: by name, "before" and "after", in sequential mode also "edit_time"; none where the
            questions themselves could not be asked (``error`` says why).
        update_norm, weight_norm: Frobenius norms of the update and of the weight before it; None
            where no edit was made, or one beside the weight.
        losses: of v* at each step, in order; of several edits, one's after the other's.
        seconds: wall-clock time of the edit.
        warnings: remarks for the user about the edit.
        error: why there was no edit; the model is then judged without it.
        also: the requests that were edited together with ``request``.
    """

    index: int
    case_id: int | str
    request: EditRequest
    generation_prompts: tuple[str, ...]
    stages: Mapping[str, Stage]
    update_norm: float | None = None
    weight_norm: float | None = None
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str | None = None
    also: tuple[EditRequest, ...] = ()

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """All that were edited."""
        return (self.request, *self.also)

    @property
    def relative_norm(self) -> float | None:
        """Norm of the update over the norm of the weight before it."""
        if self.update_norm is None or self.weight_norm is None:
            return None
        return self.update_norm / self.weight_norm

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> CaseResult:
        """The case that ``dataclasses.asdict`` has made ``fields`` of."""
        stages = {name: Stage.from_json(stage) for name, stage in fields["stages"].items()}
        tuples = {k: tuple(fields[k]) for k in ("generation_prompts", "losses", "warnings")}
        request = EditRequest(**fields["request"])
        also = tuple(EditRequest(**request) for request in fields.get("also", ()))
        read = {"request": request, "also": also, "stages": stages}
        return cls(**{**fields, **tuples, **read})


@dataclass(frozen=True)
class Checkpoint:
    """The state of a sequence of edits after some of them.

    Attributes:
        n_edits: edits in the model.
        retained: share of them whose target greedy decoding still says after the edited prompt.
        perplexity, kl: of the held texts, against the model before the run; None without texts.
    """

    n_edits: int
    retained: float
    perplexity: float | None = None
    kl: float | None = None


@dataclass(frozen=True)
class EvaluationData:
    """The measured part of an Evaluation.

    Attributes:
        setting: every argument and version that the numbers depend on, JSON-able.
        metrics: stage -> name -> Metric. Single mode has the stages "before" and "after",
            sequential mode "before", "edit_time" (each case right after its edit) and "after"
            (all cases at the end).
        cases: in the order of the records.
        drift: stage ("before", "after") -> {"perplexity", "kl"} on the held texts; in single mode
            "after" is the mean over the cases. Empty without texts.
        retention: in sequential mode, at some numbers of edits, the last one after all of them.
        seconds: wall-clock time by phase.
        capability: stage ("before", "after") -> what lm-evaluation-harness measured; empty where
            it was not asked to.
    """

    setting: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Metric]]
    cases: tuple[CaseResult, ...]
    drift: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    retention: tuple[Checkpoint, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    capability: Mapping[str, Capability] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        """The cases without an edit."""
        return tuple(case for case in self.cases if case.error is not None)

    def to_json(self) -> dict[str, Any]:
        """All of it as dicts, lists, numbers and texts."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The reverse of ``to_json``.

        Raises:
            InvalidArgumentError: of another format.
        """
        if not isinstance(fields, Mapping) or fields.get("format") != FORMAT:
            found = fields.get("format") if isinstance(fields, Mapping) else type(fields).__name__
            raise InvalidArgumentError(f"an evaluation must have format {FORMAT!r}, got {found!r}")
        metrics = {
            stage: {name: Metric(**metric) for name, metric in by_name.items()}
            for stage, by_name in fields["metrics"].items()
        }
        return cls(
            setting=fields["setting"],
            metrics=metrics,
            cases=tuple(map(CaseResult.from_json, fields["cases"])),
            drift=fields["drift"],
            retention=tuple(Checkpoint(**point) for point in fields["retention"]),
            seconds=fields["seconds"],
            capability={
                stage: Capability.from_json(of)
                for stage, of in fields.get("capability", {}).items()  # older ones have none
            },
        )
