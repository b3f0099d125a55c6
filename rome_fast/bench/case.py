"""One edit to be measured, given alike to every implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.bench.floor import Floor, floor_of
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.encode import encode

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.hparams import RomeHparams
    from rome_fast.types import EditRequest

# Which C an edit is solved with, as tables say it.
GIVEN, IDENTITY = "given C", "C = I"


@dataclass(frozen=True, eq=False)
class Case:
    """An edit and all that it depends on; it can be pickled.

    Attributes:
        hparams: peers are handed layer, fact_token, steps, learning rate, clamp, KL factor and
            weight decay; ``variant`` and ``seed`` have no meaning there.
        context_templates: used as they are; ``{}`` should come first, since peers take the value's
            start from the first one.
        second_moment: C = E[k k^T], [d_key, d_key], or None for the identity.
    """

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    request: EditRequest
    hparams: RomeHparams
    context_templates: tuple[str, ...]
    second_moment: Tensor | None

    @property
    def c_mode(self) -> str:
        """``GIVEN`` or ``IDENTITY``."""
        return IDENTITY if self.second_moment is None else GIVEN

    def floor(self, n_steps: int) -> Floor:
        """The arithmetic that it cannot do without."""
        spec = ModelSpec.of(self.model)
        tokens = encode(self.tok, self.request, self.context_templates, self.hparams.fact_token)
        projection = spec.down_projection(self.hparams.layer)
        return floor_of(spec, projection, tokens, n_steps, self.second_moment is None)
