"""Other implementations of ROME, run from the user's own checkout on the user's own model.

    peer = load_peer("kmeng01=PATH")
    theirs = peer.edit(case)

Nothing of a peer is part of this package. Each adapter says in its docstring what it replaces
while the peer runs, so that a reader can judge the comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rome_fast.bench.peers.base import Peer, PeerEdit
from rome_fast.bench.peers.easyedit import EasyEdit
from rome_fast.bench.peers.fastedit import FastEdit
from rome_fast.bench.peers.kmeng01 import Kmeng01
from rome_fast.errors import InvalidArgumentError

__all__ = ["Peer", "PeerEdit", "load_peer"]

_PEERS: dict[str, Callable[[Path], Peer]] = {
    "kmeng01": Kmeng01,
    "easyedit": EasyEdit,
    "fastedit": FastEdit,
}


def load_peer(spec: str) -> Peer:
    """Import the peer that ``spec`` names, from a checkout of it.

    Args:
        spec: ``"kmeng01=PATH"``, ``"easyedit=PATH"``, ``"fastedit=PATH"``, or ``"fastedit"`` for
            the installed package. PATH is the checkout's top folder.

    Raises:
        InvalidArgumentError: the name is unknown, the folder is not such a checkout, or something
            that the peer imports is not installed.
    """
    name, _, path = spec.partition("=")
    if name not in _PEERS:
        raise InvalidArgumentError(
            f"peer {spec!r}: {name!r} is unknown, give one of "
            f"{', '.join(f'{known}=PATH' for known in _PEERS)}"
        )
    if path:
        return _PEERS[name](Path(path).expanduser())
    if name == FastEdit.name:
        return FastEdit.installed()
    raise InvalidArgumentError(f"peer {spec!r} lacks the folder of its checkout: {name}=PATH")
