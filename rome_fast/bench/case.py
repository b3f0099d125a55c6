"""One edit to be measured, and this library's own way to make it in the form of a peer."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from rome_fast.bench.floor import Floor, floor_of
from rome_fast.bench.peers import GIVEN, IDENTITY, Peer, PeerEdit
from rome_fast.bench.setting import commit
from rome_fast.edit import trial
from rome_fast.errors import EditWarning
from rome_fast.models import ModelSpec
from rome_fast.moments import SecondMoment
from rome_fast.tokens import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.hparams import RomeHparams
    from rome_fast.types import EditRequest


@dataclass(frozen=True, eq=False)
class Case:
    """What every implementation is given alike; it can be pickled.

    Attributes:
        second_moment: C, [d_key, d_key], or None for the identity.
    """

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    request: EditRequest
    hparams: RomeHparams
    context_templates: tuple[str, ...]
    second_moment: Tensor | None

    @property
    def c_mode(self) -> str:
        """Which C the edit is solved with, as tables say it."""
        return IDENTITY if self.second_moment is None else GIVEN

    def run(self, implementation: Peer) -> PeerEdit:
        """One edit; the model is as it was afterwards."""
        return implementation.edit(
            self.model,
            self.tok,
            self.request,
            self.hparams,
            self.context_templates,
            self.second_moment,
        )

    def floor(self, n_steps: int) -> Floor:
        """The arithmetic that it cannot do without."""
        spec = ModelSpec.of(self.model)
        tokens = encode(self.tok, self.request, self.context_templates, self.hparams.fact_token)
        projection = spec.down_projection(self.hparams.layer)
        return floor_of(spec, projection, tokens, n_steps, self.second_moment is None)


class RomeFast:
    """This library as a peer: a trial, so that the weights keep their bits.

    Args:
        compute_dtype: in place of the hparams' own.
    """

    c_modes: tuple[str, ...] = (GIVEN,)

    def __init__(self, compute_dtype: str | None = None) -> None:
        self.name = "rome_fast" if compute_dtype is None else f"rome_fast {compute_dtype}"
        self.commit = commit() or ""
        self._compute_dtype = compute_dtype

    def edit(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        request: EditRequest,
        hparams: RomeHparams,
        context_templates: Sequence[str],
        second_moment: Tensor | None,
    ) -> PeerEdit:
        """``seconds["total"]`` is the wall clock of the whole call, reading back included."""
        if self._compute_dtype is not None:
            hparams = hparams.replace(compute_dtype=self._compute_dtype)
        moment = "identity" if second_moment is None else factored(second_moment)
        options = {"second_moment": moment, "context_templates": context_templates}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EditWarning)
            started = time.perf_counter()
            with trial(model, tok, request, hparams, **options) as result:
                total = time.perf_counter() - started
                dense = result.update.dense()
        return PeerEdit(dense, result.losses, {**result.seconds, "total": total})


@lru_cache(maxsize=1)
def factored(second_moment: Tensor) -> SecondMoment:
    """C as the library takes it, factored: that is done once for any number of edits."""
    # The count scales the sum and nothing else; a power of two does it without rounding.
    moment = SecondMoment.from_moment(second_moment, 2**20)
    moment.factor()
    return moment
