"""Atomic writes of files: a file is there whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path


def write_whole(
    path: Path, store: Callable[[Path], None], agree: Callable[[], None] = lambda: None
) -> None:
    """Let ``store`` write a file beside ``path``, then put it in its place in one step.

    So a file is there whole or not at all, also when the process is killed or two write it.
    ``agree`` runs in between: files of several processes then appear together.

    Raises:
        OSError: it cannot be written; what was there before is left as it was.
    """
    from safetensors import SafetensorError

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        store(partial)
        partial.chmod(mode)  # safetensors makes files that only their owner may read
        agree()
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    write_whole(Path(path), write)
