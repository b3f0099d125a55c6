"""Threads as the ops have them in use."""

import pytest
import torch


@pytest.fixture(autouse=True)
def two_threads():
    """Kernels are tested on more than one thread; the rest of the suite runs on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
