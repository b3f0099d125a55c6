"""What NVIDIA's library says of the cards, and which of them the CUDA library has code for."""

from __future__ import annotations

import ctypes

import pytest
import torch

from rome_fast.ops import _cards, _native

ARCHS = "8.0, 9.0a, 9.0+PTX"
BUILD = {"nvcc": "13.0", "cuda_archs": ARCHS}


@pytest.mark.parametrize(
    ("capability", "archs", "served"),
    [
        ((8, 0), ARCHS, True),
        ((8, 9), ARCHS, True),
        ((9, 0), ARCHS, True),
        ((12, 0), ARCHS, True),
        ((7, 5), ARCHS, False),
        ((9, 0), "9.0a", True),
        ((10, 0), "9.0a", False),
        ((10, 0), "8.6, 9.0a+PTX", False),
        ((8, 6), "8.9", False),
        ((9, 0), "8.0", False),
    ],
)
def test_code_runs_in_its_own_generation_and_ptx_in_later_ones(capability, archs, served):
    assert _cards.Card("a card", capability).is_served_by(archs) is served


class FakeNVML:
    """Answers as the library does: a status, and what was asked for in the last arguments."""

    def __init__(self, cuda, cards):
        self.cuda, self.cards = cuda, cards

    def nvmlInit_v2(self):
        return 0

    def nvmlSystemGetCudaDriverVersion_v2(self, version):
        version._obj.value = self.cuda
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = len(self.cards)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetName(self, handle, name, length):
        name.value = self.cards[handle.value - 1][0].encode()
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor):
        major._obj.value, minor._obj.value = self.cards[handle.value - 1][1]
        return 0


@pytest.fixture
def machine_with(monkeypatch):
    opened = ctypes.CDLL

    def there_is(cuda, *cards):
        libraries = {"libnvidia-ml.so.1": FakeNVML(cuda, cards)}
        monkeypatch.setattr(ctypes, "CDLL", lambda name: libraries.get(name) or opened(name))
        _cards.machine.cache_clear()
        return _cards.machine()

    yield there_is
    _cards.machine.cache_clear()


T4, H200 = ("Tesla T4", (7, 5)), ("NVIDIA H200", (9, 0))


def test_the_machine_is_read(machine_with):
    found = machine_with(13010, T4, H200)
    assert found.cuda == (13, 1)
    assert [str(card) for card in found.cards] == [
        "Tesla T4 (compute capability 7.5)",
        "NVIDIA H200 (compute capability 9.0)",
    ]


def test_a_machine_without_the_driver_has_no_answer(monkeypatch, machine_with):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    _cards.machine.cache_clear()
    assert _cards.machine() is None
    assert _cards.why_not(BUILD) == ""


def test_no_reason_where_a_card_is_served_or_nothing_is_known(machine_with):
    machine_with(13000, T4, H200)
    assert _cards.why_not(BUILD) == ""
    machine_with(12040, T4)
    assert _cards.why_not({}) == ""


def why_the_library_is_not_loaded(monkeypatch, tmp_path, n_cards=1, cuda="13.0"):
    """The reason of `load`, whose library could not be opened."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cards)
    monkeypatch.setattr(_native, "find_library", lambda _: tmp_path / "_C_cuda.so")
    monkeypatch.setattr(_native, "_build_facts", lambda: BUILD)
    return _native.load.__wrapped__("cuda").reason


def test_why_the_cuda_library_is_not_loaded(monkeypatch, tmp_path, machine_with):
    def reason(**there):
        return why_the_library_is_not_loaded(monkeypatch, tmp_path, **there)

    machine_with(13000, H200)
    assert "_C_cuda.so cannot be loaded" in reason()
    assert "is built without CUDA" in reason(cuda=None)
    assert reason(n_cards=0) == "torch finds no GPU here"
    machine_with(12040, H200)
    assert "the driver knows CUDA 12.4, and the library is built with 13.0" in reason()
    machine_with(13000, T4)
    assert reason() == (
        "the kernels need compute capability 8.0, and here is Tesla T4 (compute capability 7.5)"
    )
    machine_with(13000, H200)
    monkeypatch.setitem(BUILD, "cuda_archs", "8.0, 12.0+PTX")
    assert reason() == (
        "the library is built for 8.0, 12.0+PTX, and not for NVIDIA H200 (compute capability 9.0): "
        "build it again without TORCH_CUDA_ARCH_LIST"
    )


def test_a_library_that_a_build_left_out_says_why(monkeypatch):
    monkeypatch.setattr(_native, "find_library", lambda _: None)
    monkeypatch.setattr(_native, "_build_facts", lambda: {"why_no_cuda": "no nvcc was found"})
    cuda, cpu = (_native.load.__wrapped__(device).reason for device in ("cuda", "cpu"))
    assert cuda == f"{_native.NOT_BUILT['cuda']}; this build left it out: no nvcc was found"
    assert cpu == _native.NOT_BUILT["cpu"]
