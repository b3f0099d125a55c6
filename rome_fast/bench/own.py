"""This library's own way to make a case's edit, in the form of a peer."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from rome_fast.bench.case import GIVEN
from rome_fast.bench.peers import PeerEdit
from rome_fast.bench.setting import commit
from rome_fast.edit import trial
from rome_fast.errors import EditWarning
from rome_fast.hparams import defaults_for
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.second_moment import SecondMoment
from rome_fast.prompt.contexts import contexts_for

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.bench.case import Case


class RomeFast:
    """Makes the edit as a trial, so that the weights keep their bits.

    Args:
        compute_dtype: in place of the hparams' own.
        backend: of the ops, as ``edit`` takes it.
    """

    c_modes: tuple[str, ...] = (GIVEN,)

    def __init__(self, compute_dtype: str | None = None, backend: str = "auto") -> None:
        self.name = "rome_fast" if compute_dtype is None else f"rome_fast {compute_dtype}"
        self.commit = commit() or ""
        self._compute_dtype, self._backend = compute_dtype, backend

    def edit(self, case: Case) -> PeerEdit:
        """``seconds["total"]`` is the wall clock of the whole call, reading back included."""
        hparams, moment = case.hparams, case.second_moment
        if self._compute_dtype is not None:
            hparams = hparams.replace(compute_dtype=self._compute_dtype)
        options = {
            "second_moment": "identity" if moment is None else factored(moment),
            "context_templates": case.context_templates,
            "backend": self._backend,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EditWarning)
            started = time.perf_counter()
            with trial(case.model, case.tok, case.request, hparams, **options) as result:
                total = time.perf_counter() - started
                dense = result.update.dense()
        return PeerEdit(dense, result.losses, {**result.seconds, "total": total})


class ByDefault(RomeFast):
    """The edit where no hyper-parameters are given: another search, so other work, on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "by default"

    def edit(self, case: Case) -> PeerEdit:
        """As ``RomeFast.edit``, with the case's layer, request and C."""
        hparams, _ = defaults_for(ModelSpec.of(case.model), case.hparams.layer)
        contexts = tuple(contexts_for(case.model, case.tok, hparams))
        return super().edit(replace(case, hparams=hparams, context_templates=contexts))


@lru_cache(maxsize=1)
def factored(second_moment: Tensor) -> SecondMoment:
    """C as the library takes it, factored: that is done once for any number of edits."""
    # The count scales the sum and nothing else; a power of two does it without rounding.
    moment = SecondMoment.from_moment(second_moment, 2**20)
    moment.factor()
    return moment
