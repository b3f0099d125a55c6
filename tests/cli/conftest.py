"""A model and texts on disk, and what a collection of them writes; for the tests of `stats`."""

from __future__ import annotations

import random

import pytest
import torch
from cli_helpers import contents, saved, stats
from tiny import SENTENCES, tiny_llama


@pytest.fixture(autouse=True)
def all_threads(monkeypatch):
    """What other jobs do on this machine is no part of any output."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tiny_llama(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    draw, words = random.Random(0), " ".join(SENTENCES).split()
    lines = [" ".join(draw.choices(words, k=draw.randint(3, 40))) for _ in range(400)]
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def arguments(folder, texts):
    """All of about 17,000 tokens: several batches and checkpoints."""
    wanted = ["--layers", "1,2", "--tokens", 100_000]
    return ["collect", "--model", folder, "--texts", texts, *wanted]


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    assert stats(*arguments, "--out", out).exit_code == 0
    return contents(out)
