"""What all adapters share: the peer's inputs in its own terms, timing, and undoing its edit."""

from __future__ import annotations

import copy
import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from rome_fast.bench.peers.base import PeerEdit
from rome_fast.model.open_model import frozen
from rome_fast.model.spec import DownProjection, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.bench.case import Case

_LOSS = re.compile(r"^loss (\S+) =", re.MULTILINE)


def hparam_fields(spec: ModelSpec, projection: DownProjection, case: Case) -> dict[str, Any]:
    """The fields that the hyper-parameter classes of all peers have."""
    hparams = case.hparams
    head, _, tail = projection.name.removeprefix(f"{spec.blocks_name}.").partition(".")
    assert head == str(projection.layer)
    rewrite = f"{spec.blocks_name}.{{}}.{tail}"
    return {
        "layers": [projection.layer],
        "fact_token": hparams.fact_token,
        "v_num_grad_steps": hparams.v_num_grad_steps,
        "v_lr": hparams.v_lr,
        "v_loss_layer": spec.n_layers - 1,
        "v_weight_decay": hparams.v_weight_decay,
        "clamp_norm_factor": hparams.clamp_norm_factor,
        "kl_factor": hparams.kl_factor,
        "mom2_adjustment": case.second_moment is not None,
        "rewrite_module_tmp": rewrite,
        "layer_module_tmp": f"{spec.blocks_name}.{{}}",
        # Peers name the MLP here; its output is that of its last matrix, dropout being off.
        "mlp_module_tmp": rewrite,
        # Nothing that an edit calls reads the others.
        "attn_module_tmp": "",
        "ln_f_module": "",
        "lm_head_module": "",
        "mom2_dataset": "",
        "mom2_n_samples": 0,
        "mom2_dtype": "",
    }


def tokenizer_for_peer(
    tok: PreTrainedTokenizerBase, padding_side: str = "right"
) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with what peers expect to be set up by their caller.

    They pad, so a padding token is set; and they pass on whatever the tokenizer returns, so that
    a ``token_type_ids`` of a generic tokenizer would be added to GPT-2's embeddings.
    """
    own = copy.deepcopy(tok)
    own.padding_side = padding_side
    own.model_input_names = ["input_ids", "attention_mask"]
    if own.pad_token is None:
        own.pad_token = own.eos_token
    return own


def torch_view(device: torch.device, **replaced: object) -> ModuleType:
    """Module ``torch`` whose ``tensor`` and ``zeros`` are on ``device``, whatever device is named.

    It replaces the global ``torch`` of one peer module; no other module's changes, and a look-up in
    it costs what it always costs. ``replaced`` are further attributes to replace.
    """

    def on_device(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: factory(*args, **{**kwargs, "device": device})

    view = ModuleType("torch")
    vars(view).update(vars(torch))
    vars(view).update(tensor=on_device(torch.tensor), zeros=on_device(torch.zeros), **replaced)
    return view


class InverseSource:
    """C^-1 as peers compute it: a dense inverse in C's dtype, rounded to float32, and kept."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, second_moment: Tensor | None, device: torch.device) -> Tensor | None:
        if second_moment is None:
            return None
        if self._last is None or not torch.equal(self._last[0], second_moment):
            inverse = torch.inverse(second_moment.to(device)).float()
            self._last = second_moment.clone(), inverse
        return self._last[1].to(device)


def run_edit(
    main: ModuleType,
    projection: DownProjection,
    arguments: tuple[PreTrainedModel, Any, list[dict[str, Any]], Any],
    exchanges: Sequence[tuple[ModuleType, dict[str, Any]]],
) -> PeerEdit:
    """Call ``apply_rome_to_model`` of the peer's module ``main``, and undo what it does.

    ``arguments`` are its model, tokenizer, requests and hyper-parameters; ``exchanges`` are the
    attributes of the peer's modules that are replaced while it runs. Three functions of ``main``
    are also wrapped, to be timed and, for ``execute_rome``, to keep the u and v that it returns;
    what it prints is captured in memory.
    """
    device = projection.weight.device
    seconds: dict[str, float] = {}
    deltas: dict[str, tuple[Tensor, Tensor]] = {}
    execute = main.execute_rome

    def execute_and_keep(*args: Any, **kwargs: Any) -> Any:
        result = execute(*args, **kwargs)
        deltas.update(result)
        return result

    wrapped = {
        "compute_u": _timed(main.compute_u, "key", seconds, device),
        "compute_v": _timed(main.compute_v, "value", seconds, device),
        "execute_rome": execute_and_keep,
    }
    with ExitStack() as stack:
        stack.enter_context(_taken_back(arguments[0], projection.weight))
        for module, replaced in (*exchanges, (main, wrapped)):
            stack.enter_context(mock.patch.multiple(module, **replaced))
        printed = stack.enter_context(redirect_stdout(io.StringIO()))
        _timed(main.apply_rome_to_model, "total", seconds, device)(*arguments)
    seconds["update"] = seconds["total"] - seconds["key"] - seconds["value"]
    u, v = (part.detach().float() for part in deltas[f"{projection.name}.weight"])
    dense = torch.outer(u, v) if projection.weight_layout == "in_out" else torch.outer(v, u)
    losses = tuple(float(loss) for loss in _LOSS.findall(printed.getvalue()))
    return PeerEdit(dense, losses, seconds)


def _timed(
    function: Callable[..., Any], phase: str, seconds: dict[str, float], device: torch.device
) -> Callable[..., Any]:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def call(*args: Any, **kwargs: Any) -> Any:
        start = now()
        result = function(*args, **kwargs)
        seconds[phase] = seconds.get(phase, 0.0) + now() - start
        return result

    return call


@contextmanager
def _taken_back(model: PreTrainedModel, weight: Tensor) -> Iterator[None]:
    """Evaluation mode and gradients inside; afterwards the modes and the weight as before."""
    before = weight.detach().clone()
    try:
        with torch.inference_mode(False), frozen(ModelSpec.of(model)):
            yield
    finally:
        with torch.no_grad():
            weight.copy_(before)
