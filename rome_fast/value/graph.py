"""A step of the search for v* as one captured CUDA graph, replayed without waiting for the device.

Launching a step's thousand small kernels one by one takes longer than running them. A graph is
captured once for tensors of the same shapes and weights at the same addresses, and kept. It is
used only if it reproduces the gradients of a step run eagerly; and in every search, only if its
first logits match those of the first pass.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from rome_fast import ops
from rome_fast.model.memory import is_out_of_memory
from rome_fast.model.precision import wide_norm
from rome_fast.value.capture import (
    Captured,
    NumbersFilled,
    Refusal,
    hooks_of,
    rehearsed,
    told_host,
)
from rome_fast.value.first_pass import CANNOT
from rome_fast.value.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rome_fast.value.offsets import Offsets
    from rome_fast.value.search import Search
    from rome_fast.value.suffix_forward import SuffixForward

# How many steps the host launches ahead of the last stop flag that it has read: enough to keep the
# device busy. As many are replayed in vain after all requests have stopped.
LAG = 2

# Most graphs kept for one model.
N_KEPT = 32

# How far a replayed gradient may be from the eager one, relative to its norm.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
_HALF_TOLERANCE = 1e-1


class Graphs:
    """The graphs of one model, by ``Problem.key()``; a Refusal where a problem has none.

    They share one memory pool, as large as the largest one needs: two graphs of a model never run
    at once. All are captured on one stream, since the memory of a pool belongs to a stream.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, StepGraph | Refusal] = OrderedDict()
        self._place: tuple[Any, torch.cuda.Stream] | None = None

    def take(self, problem: Problem, check: Callable[[Tensor], None]) -> str:
        """Search to the end with the graph of a problem; a new problem's is captured first.

        Returns why there is no graph, or "".
        """
        key = problem.key()
        graph = self._kept.pop(key, None)
        if isinstance(graph, Refusal):
            if graph.hooks == hooks_of(problem.suffix.spec.blocks):
                self._kept[key] = graph
                return graph.reason
            graph = None
        is_new = graph is None
        try:
            graph = graph or StepGraph(problem, self)
            graph.run(problem, check)
        except CANNOT as error:
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if is_new:  # the next such request fails as well
                self._kept[key] = Refusal(reason, hooks_of(problem.suffix.spec.blocks))
            return reason
        self._kept[key] = graph
        while len(self._kept) > N_KEPT:
            self._kept.popitem(last=False)
        return ""

    def place(self) -> tuple[Any, torch.cuda.Stream]:
        """The memory pool of the graphs, and the stream that they are captured on.

        It is a stream of the current device; torch's own stays on the device it was first made for.
        """
        device = torch.cuda.current_device()
        if self._place is None or self._place[1].device_index != device:
            self._place = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        return self._place


_graphs: WeakKeyDictionary[nn.Module, Graphs] = WeakKeyDictionary()


def is_wanted(search: Search, backend: str) -> bool:
    """Whether the steps of a search are captured: on one GPU, unless plain torch is asked for."""
    if search.suffix is None or ops.is_torch_asked(backend):
        return False
    tensors = *search.spec.parameters.values(), *search.spec.buffers.values()
    devices = {search.projection.weight.device, *(x.device for x in tensors)}
    return len(devices) == 1 and devices.pop().type == "cuda"


@torch.no_grad()
def search_captured(search: Search, objective: Objective, offsets: Offsets) -> str:
    """Run all steps of a search by a graph; returns why that is impossible, or "".

    ``offsets`` then hold the result; if it was impossible they are unchanged.
    """
    assert search.suffix is not None
    graphs = _graphs.setdefault(search.spec.model, Graphs())
    device = search.projection.weight.device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        objective.start_from(search.unmoved_logits)
        return graphs.take(Problem(search.suffix, objective, offsets), search.check)


def forget(model: nn.Module) -> None:
    """Free the graphs of a model, and the memory of their activations."""
    _graphs.pop(model, None)


@dataclass(frozen=True, eq=False)
class Problem:
    """The inputs of a step: constants of one search, and the state that it updates."""

    suffix: SuffixForward
    objective: Objective
    offsets: Offsets

    def key(self) -> Hashable:
        """What must be equal for a captured graph to be used again."""
        leaves, shape = tree_flatten(self._parts())
        what = [(x.shape, x.dtype) if isinstance(x, torch.Tensor) else repr(x) for x in leaves]
        spec, weights = self.suffix.spec, self.suffix.weights or {}
        held = *spec.parameters.values(), *spec.buffers.values(), *weights.values()
        return (
            (str(shape), *what),
            (self.suffix.projection.layer, self.suffix.n_silent, len(weights)),
            (self.objective.constants, self.offsets.constants),
            tuple(x.data_ptr() for x in held),
            # Its older names raise an error once a user has set it by this one.
            torch.backends.cuda.matmul.fp32_precision,
        )

    def tensors(self) -> list[Tensor]:
        """All its tensors, in an order that is the same for equal keys."""
        return [x for x in tree_flatten(self._parts())[0] if isinstance(x, torch.Tensor)]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Problem:
        """The same with ``function`` of each tensor."""
        leaves, shape = tree_flatten(self._parts())
        leaves = [function(x) if isinstance(x, torch.Tensor) else x for x in leaves]
        rows, split, below, attention, constants, state = tree_unflatten(leaves, shape)
        suffix = replace(
            self.suffix,
            rows=type(self.suffix.rows)(**rows),
            split=type(self.suffix.split)(**split),
            below=below,
            attention=attention,
        )
        objective, offsets = copy.copy(self.objective), copy.copy(self.offsets)
        vars(objective).update(constants)
        vars(offsets).update(state)
        return Problem(suffix, objective, offsets)

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, gradients of the offsets, losses, and whether each target is the likeliest."""
        deltas = self.offsets.deltas.requires_grad_()
        with torch.enable_grad(), NumbersFilled():
            logits = self.suffix.logits(deltas)
        losses, gradient, right = self.objective(logits.detach())
        (gradients,) = torch.autograd.grad(logits, [deltas], gradient)
        return logits.detach(), gradients, losses, right

    def _parts(self) -> tuple[Any, ...]:
        suffix = self.suffix
        return (
            *(vars(suffix.rows), vars(suffix.split), suffix.below, suffix.attention),
            {name: getattr(self.objective, name) for name in Objective.TENSORS},
            {name: getattr(self.offsets, name).detach() for name in self.offsets.TENSORS},
        )


class StepGraph:
    """A step captured on tensors of its own, into which each search copies its tensors.

    It keeps no reference to the model: ``_graphs`` would then keep the model alive.
    """

    def __init__(self, problem: Problem, graphs: Graphs) -> None:
        own = problem.mapped(torch.clone)
        self._tensors, self._objective, self._offsets = own.tensors(), own.objective, own.offsets
        rehearsed(lambda: self._step(own), graphs.place)  # its gradients are those to reproduce
        self._expected: Tensor | None = self._gradients.clone()
        self._captured = Captured(lambda: self._step(own), graphs.place)

    def _step(self, own: Problem) -> None:
        self.logits, self._gradients, losses, right = own.compute()
        own.offsets.step(self._gradients, losses, right)
        self._goes_on = own.offsets.active.any()

    def run(self, problem: Problem, check: Callable[[Tensor], None]) -> None:
        """Search to the end; the offsets of ``problem`` then hold what was found.

        Raises:
            ValueError: the graph does not compute what it should.
        """
        torch._foreach_copy_(self._tensors, problem.tensors())
        self._captured.replay()
        check(self.logits)
        self._check_gradients()
        # From the second step on, the KL's reference is the first step's logits, as in any search.
        self._objective.start_from(self.logits)
        self._replay_rest(len(self._offsets.history) - 1)
        for name in problem.offsets.TENSORS:
            getattr(problem.offsets, name).detach().copy_(getattr(self._offsets, name))

    def _replay_rest(self, n_steps: int) -> None:
        """Replay at most ``n_steps``; the host reads each step's stop flag ``LAG`` steps late."""
        waits = deque([told_host(self._goes_on)])
        for _ in range(n_steps):
            if len(waits) > LAG and not waits.popleft()():
                return
            self._captured.replay()
            waits.append(told_host(self._goes_on))

    def _check_gradients(self) -> None:
        if self._expected is None:
            return
        tolerance = _TOLERANCE.get(self.logits.dtype, _HALF_TOLERANCE)
        difference = float(wide_norm(self._gradients - self._expected) / wide_norm(self._expected))
        if not difference <= tolerance:
            raise ValueError(f"the captured step's gradient is off by {difference:.1g}")
        self._expected = None
