"""What leads to a capture and what follows a failed one, with torch's CUDA calls replaced."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from rome_fast.value import capture

SAID = "called a synchronizing CUDA operation (Triggered internally at ...)"
PROTOTYPE = (
    "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing "
    "operations (Triggered internally at ...)"
)


class FakeGraph:
    """Its capture can only end well if the step did."""

    made: ClassVar[list[FakeGraph]] = []

    def __init__(self):
        self.calls = []
        self.made.append(self)

    def capture_begin(self, **settings):
        self.calls.append("begin")

    def capture_end(self):
        self.calls.append("end")
        if "broken" in self.calls:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self):
        self.calls.append("replay")


@pytest.fixture
def pretended(monkeypatch):
    """What is called of torch.cuda; the pools whose use was ended, and the modes that were set."""
    told = SimpleNamespace(ended=[], modes=[0])
    stream = SimpleNamespace(device_index=3, wait_stream=lambda _: None)

    def set_mode(mode):
        if told.modes == [0]:
            warnings.warn(PROTOTYPE, stacklevel=1)  # as torch does at the first call
        told.modes.append(mode)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: told.modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    ended = lambda device, pool: told.ended.append((device, pool))  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", ended, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    monkeypatch.setattr(capture, "_failed", [])
    monkeypatch.setattr(FakeGraph, "made", [])
    told.place = lambda: ("pool", stream)
    return told


def test_a_step_is_captured_and_replayed(pretended):
    captured = capture.Captured(lambda: FakeGraph.made[0].calls.append("step"), pretended.place)
    captured.replay()
    assert FakeGraph.made[0].calls == ["begin", "step", "end", "replay"]
    assert not pretended.ended


def test_after_a_failed_capture_there_is_no_other_and_the_first_cause_is_told(pretended):
    def step():
        FakeGraph.made[-1].calls.append("broken")
        raise RuntimeError("operation not permitted when stream is capturing\nand a long trace")

    with pytest.raises(RuntimeError, match="not permitted"):
        capture.Captured(step, pretended.place)
    assert FakeGraph.made[0].calls == ["begin", "broken", "end"]
    assert pretended.ended == [(3, "pool")], "the allocator is put back"
    with pytest.raises(RuntimeError, match=r"failed in this process: .* is capturing$"):
        capture.Captured(lambda: None, pretended.place)
    assert len(FakeGraph.made) == 1, "nothing is captured again"


def test_a_capture_that_cannot_end_counts_as_failed(pretended):
    with pytest.raises(RuntimeError, match="previous error"):
        capture.Captured(lambda: FakeGraph.made[-1].calls.append("broken"), pretended.place)
    with pytest.raises(RuntimeError, match="failed in this process"):
        capture.Captured(lambda: None, pretended.place)


def test_lack_of_memory_is_no_failed_capture(pretended):
    """The capture ends well, and fewer rows are captured next."""

    def step():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        capture.Captured(step, pretended.place)
    assert FakeGraph.made[0].calls == ["begin", "end"]
    capture.Captured(lambda: None, pretended.place)

    def broken():
        FakeGraph.made[-1].calls.append("broken")
        step()

    with pytest.raises(RuntimeError, match="previous error"):
        capture.Captured(broken, pretended.place)
    with pytest.raises(RuntimeError, match="failed in this process"):
        capture.Captured(lambda: None, pretended.place)


def test_a_step_that_waits_is_found_before_it_is_captured(pretended):
    def step():
        assert pretended.modes[-1] == "warn"
        warnings.warn("some other remark", stacklevel=1)
        warnings.warn(SAID, stacklevel=1)

    # The first rehearsal of a process is told of the mode itself.
    capture.rehearsed(lambda: warnings.warn("some other remark", stacklevel=1), pretended.place)
    with pytest.raises(RuntimeError, match="waits for the device: called a synchronizing"):
        capture.rehearsed(step, pretended.place)
    assert pretended.modes == [0, "warn", 0, "warn", 0]


def test_the_mode_is_put_back_after_an_error(pretended):
    def step():
        raise ValueError("of the model")

    with pytest.raises(ValueError, match="of the model"):
        capture.rehearsed(step, pretended.place)
    assert pretended.modes == [0, "warn", 0]
