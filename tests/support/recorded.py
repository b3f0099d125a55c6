"""A stand-in for a captured CUDA graph: a step's operations, recorded and run again without it.

As on a GPU, a replay runs the recorded operations on the tensors of the recording; no Python code
runs again. And as there, a step that reads the value of a tensor cannot be captured.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers.utils import import_utils

from rome_fast.value import buckets, graph
from rome_fast.value.buckets import Buckets

_ASKING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique", "masked_select"}


def record_graphs(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """From now on every model is searched as one on a GPU would be; returns what is captured."""
    made: list[Recorded] = []

    def captured(step, pool):
        with monkeypatch.context() as patch:
            # What transformers asks torch before it looks into a mask.
            patch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True, raising=False)
            made.append(Recorded(step))
        return made[-1]

    monkeypatch.setattr(graph, "Captured", captured)
    monkeypatch.setattr(graph, "rehearsed", lambda step, _: step())
    monkeypatch.setattr(graph, "told_host", lambda flag: flag.clone().item)
    monkeypatch.setattr(graph, "is_wanted", lambda search, _: search.suffix is not None)
    monkeypatch.setitem(buckets._OF_DEVICE, "cpu", Buckets.of("cuda"))
    return made


class CapturedError(RuntimeError):
    """Stands for torch's error where a stream would have to wait while it is captured."""


class Recorded:
    """The twin of ``rome_fast.value.graph.Captured``."""

    def __init__(self, step):
        recorder = _Recorder()
        with recorder:
            step()
        # Capturing must not change any tensor: what was written is put back.
        for tensor, value in recorder.overwritten:
            tensor.copy_(value)
        self.calls, self.n_replays = recorder.calls, 0

    @torch.no_grad()
    def replay(self):
        self.n_replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.overwritten, self._own = [], [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name.split("::")[-1] in _ASKING:
            raise CapturedError(f"operation not permitted when stream is capturing: {func}")
        for arg, declared in zip(args, func._schema.arguments, strict=False):
            mutated = declared.alias_info is not None and declared.alias_info.is_write
            if mutated and arg.untyped_storage().data_ptr() not in self._own:
                self.overwritten.insert(0, (arg.detach(), arg.detach().clone()))
        result = func(*args, **kwargs)
        for x in tree_flatten(result)[0]:
            is_new = isinstance(x, torch.Tensor) and not any(
                isinstance(a, torch.Tensor)
                and a.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
                for a in tree_flatten((args, kwargs))[0]
            )
            if is_new:
                self._own.add(x.untyped_storage().data_ptr())
        self.calls.append((func, args, kwargs, result))
        return result
