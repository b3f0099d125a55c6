"""CPU tensors that claim to lie on several devices; an operation on two devices fails."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakIdKeyDictionary

CPU = torch.device("cpu")
_MOVING = (torch.Tensor.to, torch.Tensor.cpu)
# In these operations index tensors may lie on the CPU, wherever the others are.
_INDEXING = (
    torch.Tensor.__getitem__,
    torch.Tensor.__setitem__,
    torch.Tensor.index_put,
    torch.Tensor.index_put_,
)


def device(number: int) -> torch.device:
    """A device that libraries treat as no CPU, but without further special cases."""
    return torch.device("mps", number)


class PretendDevices(TorchFunctionMode):
    """While open, ``x.device`` is what x was moved to, and an operation on two devices fails.

    What torch computes inside one operation is not checked.

    Attributes:
        may_move: whether a tensor may be moved to another device; else that fails, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.may_move = True
        self._places = WeakIdKeyDictionary()

    def place(self, module: torch.nn.Module, where: torch.device) -> None:
        """Move a module; from now on it moves what it is given, as accelerate's hooks do."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._places[tensor] = where

        def moved(x):
            return x.to(where) if isinstance(x, torch.Tensor) else x

        module.register_forward_pre_hook(
            lambda _, args, kwargs: (tree_map(moved, args), tree_map(moved, kwargs)),
            with_kwargs=True,
        )

    def of(self, x: torch.Tensor) -> torch.device:
        return self._places.get(x, CPU)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return self.of(args[0])
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        where = self._target(func, tensors, args, kwargs)
        args, kwargs = tree_map(lambda x: CPU if isinstance(x, torch.device) else x, (args, kwargs))
        moves = func in (*_MOVING, torch.Tensor.copy_) and {where} != {*map(self.of, tensors)}
        moves |= func is torch.tensor and where != CPU and args[0] != []  # the host's numbers
        if moves and not self.may_move:
            raise RuntimeError(f"{func} to {where}")
        result = func(*args, **kwargs)
        if func in _MOVING and result is args[0] and self.of(result) != where:
            result = result.view_as(result)
        for x in tree_flatten(result)[0]:
            if isinstance(x, torch.Tensor) and not any(x is given for given in tensors):
                self._places[x] = where
        return result

    def _target(self, func, tensors, args, kwargs) -> torch.device:
        """Where the result lies."""
        asked = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)]
        if asked:
            return asked[0]
        if func is torch.Tensor.cpu:
            return CPU
        if func is torch.Tensor.to and len(tensors) == 2:
            return self.of(tensors[1])
        if func is torch.Tensor.copy_:
            return self.of(tensors[0])
        if func is torch.autograd.grad:  # from where the outputs lie to where the inputs do
            (outputs, inputs), gradients = args, kwargs["grad_outputs"]
            assert len({self.of(x) for x in tree_flatten((outputs, gradients))[0]}) == 1
            return self.of(inputs[0])
        places = {self.of(x) for x in tensors if x.dim()} or {self.of(x) for x in tensors}
        if func in _INDEXING and len(places) > 1 and self.may_move:
            places.discard(CPU)
        if len(places) > 1:
            raise RuntimeError(f"{func} on {sorted(map(str, places))}")
        return places.pop() if places else CPU
