"""``model_name`` of the settings -> (model, tokenizer)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rome_fast.errors import EditWarning, HparamsError, warn

if TYPE_CHECKING:
    from rome_fast.easyedit.hparams import ROMEHyperParams


def load(hparams: ROMEHyperParams) -> tuple[Any, Any]:
    """The pair that ``model_name`` is, or the model that it names, in eval mode on the device.

    Raises:
        HparamsError: neither a pair nor a name that transformers can load, or no such device.
    """
    named = hparams.model_name
    if isinstance(named, tuple | list) and len(named) == 2:
        return named[0], named[1]
    if not isinstance(named, str):
        raise HparamsError(
            "hparams.model_name must be a folder, a name on the hub, or (model, tokenizer), got "
            f"{named!r:.80}"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = None if hparams.model_parallel else _device(hparams.device)
    try:
        tok = AutoTokenizer.from_pretrained(named)
        model = AutoModelForCausalLM.from_pretrained(
            named,
            dtype=torch.float16 if hparams.fp16 else torch.float32,
            device_map="auto" if hparams.model_parallel else None,
        )
    except (OSError, ValueError) as error:
        raise HparamsError(
            f"hparams.model_name: {named!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    # GPT-2's and Llama's tokenizers have no pad token, and cannot pad a batch without one.
    if tok.pad_token is None:
        tok.pad_token = tok.eos_token
    # transformers' annotation of .to() loses its argument.
    return (model if device is None else model.to(device)), tok  # type: ignore[arg-type]


def _device(asked: int | str | None) -> torch.device:
    if asked is None:
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        number = int(asked) if str(asked).isdigit() else None
        device = torch.device(str(asked) if number is None else f"cuda:{number}")
    except RuntimeError as error:
        raise HparamsError(
            f"hparams.device must be a number or a torch device, got {asked!r}"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        # Every file that EasyEdit ships says `device: 0`.
        warn(
            f"hparams.device is {asked!r}, but torch finds no CUDA device: the CPU is used",
            EditWarning,
        )
        return torch.device("cpu")
    return device
