"""A request that the miniature models can be edited to, and comparing their bits."""

from __future__ import annotations

import torch

from rome_fast import HealthCheck

# The subject comes last: a random model hardly attends, so only its own position can be moved.
REQUEST = {"prompt": "The founder is {}", "subject": "Steve Jobs", "target_new": "capital"}
UNWATCHED = HealthCheck(every=0)  # a Session that samples nothing
# Of a Session: each edit of the weight on the edited one, where those before it are retained.
SEQUENTIAL = {"form": "weight", "solve": "sequential"}
CONTEXTS = ["{}", "The weather was fine. {}", "He is a man. {}"]


def state(model):
    """A copy of all parameters, to compare bit for bit."""
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def same_bits(model, before):
    """True if no bit of any parameter differs; a NaN equals itself."""
    return all(torch.equal(_bits(p), _bits(before[n])) for n, p in model.state_dict().items())


def _bits(tensor):
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)
