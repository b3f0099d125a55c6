"""What a peer is, and what one of its edits reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.bench.case import Case


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
        commit: git commit of the checkout (``-dirty`` if it was changed), or the version.
        c_modes: ``GIVEN`` where it takes a second moment, ``IDENTITY`` where C = I is what it does
            by default; both for some.
    """

    name: str
    commit: str
    c_modes: tuple[str, ...]

    def edit(self, case: Case) -> PeerEdit:
        """One edit, taken back.

        Model, tokenizer and their settings are as before on return, the weights to the bit, also
        when the peer raises; what it raises is passed on. A second moment is inverted in its own
        dtype before the clock starts, as peers keep the inverse in a cache; it has no effect
        where ``c_modes`` lacks ``GIVEN``.
        """
        ...
