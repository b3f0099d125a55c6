"""Hyper-parameters that other implementations were published with, by name: "kmeng01/gpt2-xl"."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from rome_fast.errors import HparamsError

SOURCES = ("kmeng01", "easyedit")


def published(name: str | Path) -> dict[str, Any] | None:
    """The fields of a published setting; None where ``name`` is not the name of one, or a file's.

    Raises:
        HparamsError: the source is known, and has no such model; names those that it has.
    """
    import yaml

    source, _, model = Path(name).as_posix().lower().partition("/")
    if source not in SOURCES or not model or Path(name).exists():
        return None
    text = resources.files("rome_fast.published").joinpath(f"{source}.yaml").read_text("utf-8")
    table = yaml.safe_load(text)
    model = model.removesuffix(".json").removesuffix(".yaml")
    if model not in table["models"]:
        known = ", ".join(f"{source}/{name}" for name in table["models"])
        raise HparamsError(f"hparams: there is no {str(name)!r}; known: {known}")
    return {**table["usual"], **table["models"][model]}
