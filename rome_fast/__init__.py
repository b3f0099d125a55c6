"""Edit one fact of a language model by a rank-one update: fast, undoable, and truthful about it.

    >>> result = rome_fast.edit(model, tok, {
    ...     "prompt": "{} plays the", "subject": "Ray Charles", "target_new": "violin"})
    >>> print(result)
    >>> result.revert()

Importing this package never compiles, never starts CUDA and never imports transformers.
"""

from rome_fast import demo
from rome_fast._version import __version__ as __version__
from rome_fast.beside.widen import widened
from rome_fast.edit import edit, edit_many, trial
from rome_fast.editlog import EditLog, attach
from rome_fast.evaluate import (
    Capability,
    Comparison,
    EditRecord,
    Evaluation,
    compare,
    evaluate,
    load_records,
    measure_capability,
)
from rome_fast.explain import Explanation, explain
from rome_fast.hparams import RomeHparams
from rome_fast.locate import locate, suggest_layer
from rome_fast.moment.collect.collector import collect_second_moment
from rome_fast.moment.second_moment import SecondMoment
from rome_fast.probe import Anatomy, Probe, probe
from rome_fast.session import Guard, HealthCheck, RejectedEdit, Session
from rome_fast.types import EditRequest, EditResult, RankOneUpdate

__all__ = [
    "Anatomy",
    "Capability",
    "Comparison",
    "EditLog",
    "EditRecord",
    "EditRequest",
    "EditResult",
    "Evaluation",
    "Explanation",
    "Guard",
    "HealthCheck",
    "Probe",
    "RankOneUpdate",
    "RejectedEdit",
    "RomeHparams",
    "SecondMoment",
    "Session",
    "attach",
    "collect_second_moment",
    "compare",
    "demo",
    "edit",
    "edit_many",
    "evaluate",
    "explain",
    "load_records",
    "locate",
    "measure_capability",
    "probe",
    "suggest_layer",
    "trial",
    "widened",
]
