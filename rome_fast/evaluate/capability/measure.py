"""``measure_capability``: tasks of lm-evaluation-harness on a model as it is in memory."""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from rome_fast.errors import CapabilityError, InvalidArgumentError, RomeFastError
from rome_fast.evaluate.capability.result import Capability
from rome_fast.evaluate.capability.results import scores_of
from rome_fast.evaluate.capability.tasks import checked_names, load_tasks, task_manager_type
from rome_fast.model.open_model import open_model
from rome_fast.model.spec import check_tokenizer
from rome_fast.timings import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Those that lm-evaluation-harness sets by itself.
SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
# Of metrics that are no means. Its own 100,000 take minutes a task, for a third digit.
BOOTSTRAPS = 1000


def measure_capability(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    tasks: str | Path | Sequence[str | Path],
    limit: int | None = None,
    *,
    batch_size: int = 8,
    progress: bool = True,
) -> Capability:
    """Measure a model as it is now on tasks of lm-evaluation-harness.

    ``after.compare(before)`` says what edits have changed, sample by sample.

    Args:
        model: may be wrapped by torch.compile or PEFT, and may have edits beside its weights.
        tasks: names of tasks, groups or tags ("arc_easy", "mmlu"), which are fetched from the hub,
            or paths of YAML files, or of folders, of your own. A path has a separator in it, or
            ends in .yaml.
        limit: so many samples of each task at most, the first ones; None: all.
        batch_size: samples that share a forward; no score depends on it but by rounding.
        progress: show bars.

    Returns:
        A Capability. Prompts are as in the task, without a chat template, and cut from the left
        where the model has no room for them. The model is as before: weights to the bit, training
        mode, hooks; so are the tokenizer and the random numbers.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        InvalidArgumentError: an argument, or a task that there is not.
        CapabilityError: a task cannot be fetched, read or run.
    """
    harness = Harness(tasks, limit, batch_size, progress=progress)
    with open_model(model) as spec:
        check_tokenizer(spec.model, tok)
        return harness.measure(spec.model, tok)


class Harness:
    """Tasks that are fetched once, to be asked of a model as often as wanted.

    The arguments and errors are those of ``measure_capability``.

    Attributes:
        setting: what its numbers depend on, as far as that is known before the first measurement.
    """

    def __init__(
        self,
        tasks: str | Path | Sequence[str | Path],
        limit: int | None = None,
        batch_size: int = 8,
        *,
        progress: bool = True,
    ) -> None:
        names = checked_names(tasks)
        for name, value in (("limit", 1 if limit is None else limit), ("batch_size", batch_size)):
            if type(value) is not int or value < 1:
                raise InvalidArgumentError(
                    f"{name} must be a whole number of 1 or more, got {value!r}"
                )
        self._progress = progress
        manager_type = task_manager_type()
        with _quiet(progress), _own_random_numbers():
            self._loaded = load_tasks(manager_type, names)
        self.setting = {
            "tasks": names,
            "limit": limit,
            "batch_size": batch_size,
            "seeds": SEEDS,
            "lm_eval": importlib.metadata.version("lm_eval"),
        }

    def measure(self, model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> Capability:
        """Ask the tasks of a plain model that is frozen and locked."""
        names = ", ".join(self._loaded["tasks"])
        try:
            with _quiet(self._progress), _own_random_numbers(), _tied_as_it_is(model):
                results = self._run(model, tok)
        except RomeFastError:
            raise
        # A task may hold code of its own, and a prompt may not fit in memory.
        except Exception as error:
            raise CapabilityError(
                f"lm-evaluation-harness stopped in {names}: {type(error).__name__}: {error}"
            ) from error
        setting = {**self.setting, "versions": results["versions"], "n_shot": results["n-shot"]}
        return Capability(setting, scores_of(results))

    def _run(self, model: PreTrainedModel, tok: PreTrainedTokenizerBase) -> dict[str, Any]:
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        # It gives the tokenizer a padding token.
        lm = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tok),
            backend="causal",
            batch_size=self.setting["batch_size"],
        )
        for task in self._loaded["tasks"].values():
            task.set_fewshot_seed(SEEDS["fewshot"])
        # simple_evaluate is this, and five seconds for a description of the machine.
        results: dict[str, Any] = lm_eval.evaluate(
            lm, self._loaded, limit=self.setting["limit"], bootstrap_iters=BOOTSTRAPS
        )
        return results


def harness_for(
    capability: str | Path | Sequence[str | Path], limit: int | None, mode: str, *, progress: bool
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


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """While open, random numbers are those of SEEDS; after, they go on as before."""
    before, before_numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(list(devices)):
        random.seed(SEEDS["python"])
        np.random.seed(SEEDS["numpy"])
        torch.manual_seed(SEEDS["torch"])
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(before_numpy)


@contextmanager
def _tied_as_it_is(model: PreTrainedModel) -> Iterator[None]:
    """While open, ``tie_weights`` does nothing: it would take a head's own weights from it."""
    own = vars(model).get("tie_weights")
    vars(model)["tie_weights"] = lambda *args, **more: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]
        if own is not None:
            vars(model)["tie_weights"] = own


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """While open, lm-evaluation-harness keeps its remarks, and its bars are drawn as all others."""

    def bar(rows: Any = None, *, disable: bool | None = False, **options: Any) -> tqdm[Any]:
        return progress_bar(rows, show=progress and not disable, **options)

    import datasets

    hides = not progress and not datasets.are_progress_bars_disabled()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    drawing = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("lm_eval.") and vars(module).get("tqdm") is tqdm
    ]
    for module in drawing:
        vars(module)["tqdm"] = bar
    if hides:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hides:
            datasets.enable_progress_bars()
        for module in drawing:
            vars(module)["tqdm"] = tqdm
        logger.setLevel(level)
