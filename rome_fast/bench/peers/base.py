"""What a peer is, and what one of its edits tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.hparams import RomeHparams
    from rome_fast.types import EditRequest


# Which C an edit is solved with, as tables say it.
GIVEN, IDENTITY = "given C", "C = I"


@dataclass(frozen=True, eq=False)
class PeerEdit:
    """What one edit of a peer computed.

    Attributes:
        dense: the update in the shape and layout of the edited weight, float32.
        losses: loss at each step as the peer prints it (rounded to 3 decimals).
        seconds: wall-clock seconds: ``"total"`` is the peer's own call from a request to the
            written weight; of it ``"key"`` is its function for u, ``"value"`` the one for v, and
            ``"update"`` the rest.
    """

    dense: Tensor
    losses: tuple[float, ...]
    seconds: dict[str, float]


class Peer(Protocol):
    """Another implementation of ROME, run in this process on the same model.

    Attributes:
        name: as in ``load_peer``.
        commit: git commit of the checkout (``-dirty`` if it was changed), or name and version.
        c_modes: ``GIVEN`` where it takes a second moment, ``IDENTITY`` where C = I is what it does
            by default; both for some.
    """

    name: str
    commit: str
    c_modes: tuple[str, ...]

    def edit(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        request: EditRequest,
        hparams: RomeHparams,
        context_templates: Sequence[str],
        second_moment: Tensor | None,
    ) -> PeerEdit:
        """One edit, taken back.

        Model, tokenizer and their settings are as before on return, the weights to the bit, also
        when the peer raises; what it raises is passed on.

        Args:
            hparams: layer, fact_token, steps, learning rate, clamp, KL factor and weight decay
                are handed to the peer; ``variant`` and ``seed`` have no meaning there.
            context_templates: used as they are; ``{}`` should come first, since peers take the
                value's start from the first one.
            second_moment: C = E[k k^T], [d_key, d_key]; None is the identity. It is inverted in
                its own dtype before the clock starts, as peers keep the inverse in a cache.
                Without effect where ``c_modes`` lacks ``GIVEN``.
        """
        ...
