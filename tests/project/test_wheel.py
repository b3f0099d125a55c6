"""tools/check_wheel.py: what it refuses. `make wheel` builds the wheel and runs it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import check_wheel

GOOD = "rome_fast-0.2.0-cp310-abi3-manylinux_2_24_x86_64.whl"
WITH_CUDA = "rome_fast-0.2.0-1cu13-cp310-abi3-manylinux_2_34_x86_64.whl"
FACTS = {
    "success": True,
    "backend": "native",
    "why_not_native": "",
    "changed": True,
    "undone": True,
    "build": {"simd": "avx2"},
    "without_cuda": "",
}


def wheel_of(folder, name, files=tuple(check_wheel.LIBRARIES)):
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for file in (*files, "rome_fast/__init__.py"):
            archive.writestr(file, "")
    return path


def test_a_wheel_for_every_python_is_accepted(tmp_path):
    assert check_wheel.problems_of_name(wheel_of(tmp_path, GOOD)) == []
    both = [*check_wheel.LIBRARIES, check_wheel.CUDA_LIBRARY]
    assert check_wheel.problems_of_name(wheel_of(tmp_path, WITH_CUDA, both)) == []


@pytest.mark.parametrize(
    ("name", "files", "problem"),
    [
        ("rome_fast-0.2.0-py3-none-any.whl", (), "no cp310-abi3 wheel"),
        ("rome_fast-0.2.0-cp310-abi3-linux_x86_64.whl", None, "no cp310-abi3 wheel"),
        (GOOD, ["rome_fast/_C.abi3.so", "rome_fast/_facts.cpython-311.so"], "it holds"),
        (GOOD, [*check_wheel.LIBRARIES, "rome_fast.libs/libgomp.so.1"], "it holds"),
        (GOOD, [*check_wheel.LIBRARIES, check_wheel.CUDA_LIBRARY], "it holds"),
        (WITH_CUDA, None, "it holds"),
    ],
)
def test_any_other_is_refused(tmp_path, name, files, problem):
    wheel = wheel_of(tmp_path, name, check_wheel.LIBRARIES if files is None else files)
    assert any(problem in found for found in check_wheel.problems_of_name(wheel))
    assert check_wheel.main([str(wheel)]) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"success": False}, "the edit went through"),
        ({"backend": "torch", "why_not_native": "too old"}, "native, and not torch (too old)"),
        ({"changed": False}, "were changed"),
        ({"undone": False}, "as before"),
        ({"build": {}}, "facts are known"),
        ({"without_cuda": "value_loss"}, "CUDA kernel, but value_loss"),
        ({"where": "/elsewhere/rome_fast/__init__.py"}, "not /elsewhere"),
    ],
)
def test_an_edit_that_is_not_as_it_should_is_told(tmp_path, change, problem):
    facts = {**FACTS, "where": str(tmp_path / "lib" / "rome_fast" / "__init__.py"), **change}
    found = check_wheel.problems_of_edit(facts, tmp_path)
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]
