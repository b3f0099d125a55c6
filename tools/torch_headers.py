"""The headers of a torch that is not installed, from a wheel of the registry.

The wheel for macOS is taken, which has the same headers and no CUDA: 80 MB and not a gigabyte. Only
its include folder is kept, in build/torch-headers/.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

KEPT = Path(__file__).resolve().parents[1] / "build" / "torch-headers"
INCLUDE = "torch/include/"


class NoHeadersError(Exception):
    """The registry does not give the wheel; says why."""


def headers_of(torch: str) -> Path:
    """The include folder of a version such as "2.10.0"."""
    kept = KEPT / torch
    if not kept.is_dir():
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as folder:
            with zipfile.ZipFile(_wheel(torch, Path(folder))) as wheel:
                names = [name for name in wheel.namelist() if name.startswith(INCLUDE)]
                wheel.extractall(folder, names)
            (Path(folder) / INCLUDE).rename(kept)
    return kept


def _wheel(torch: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--python-version=3.11"]
    command += ["--platform=macosx_11_0_arm64", f"--dest={folder}", f"torch=={torch}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoHeadersError(" ".join(done.stderr.split()[-30:]))
    return next(folder.glob("*.whl"))
