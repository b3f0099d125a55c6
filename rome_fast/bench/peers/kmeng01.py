"""kmeng01/rome, the first implementation, from a checkout.

What is replaced while an edit runs, and why; its files stay as they are:

- ``rome_main.CONTEXT_TEMPLATES_CACHE`` holds the given templates, which it otherwise samples once.
- ``compute_u.get_inv_cov`` returns the given C^-1, which it otherwise computes from Wikipedia and
  keeps; so its time holds no statistics.
- ``compute_v`` names "cuda" for three tensors, and for the tokenizer's results: they go where the
  model is.
- ``rome.layer_stats``, ``util.globals`` and matplotlib are stubs while importing: they need data
  sets, a file in the current folder, and a plot that is never drawn.

Its rules are left alone: it stops at a loss below 0.05, runs the whole model in every step on all
templates, splits prefix and subject at a space to count tokens, and puts a space before the target.
With ``fact_token`` "last" it looks at the last column of a padded batch, which is padding in
all but the longest row: not comparable. It reads the width as ``config.n_embd``, which is put there
while it runs; the BOS of a tokenizer that adds one it counts twice, so would edit another place.
Tokens are counted in slices of a batch, which only the batches of fast tokenizers give it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import BatchEncoding

from rome_fast.bench.case import GIVEN
from rome_fast.bench.peers.base import PeerEdit
from rome_fast.bench.peers.harness import (
    InverseSource,
    hparam_fields,
    run_edit,
    tokenizer_for_peer,
    torch_view,
)
from rome_fast.bench.peers.isolate import commit_of, import_modules, require_files, stub
from rome_fast.errors import TokenizerMismatchError
from rome_fast.model.spec import ModelSpec
from rome_fast.prompt.ids import leading_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from rome_fast.bench.case import Case


class Kmeng01:
    """Peer ``kmeng01``: decoders whose tokenizer adds no BOS, float32."""

    name = "kmeng01"
    c_modes: tuple[str, ...] = (GIVEN,)

    def __init__(self, root: Path) -> None:
        require_files(self.name, root, ("rome/rome_main.py", "util/nethook.py"), "kmeng01/rome")
        self.commit = commit_of(root, ("rome", "util")) or "unknown commit"
        self._main, self._compute_u, self._compute_v = import_modules(
            self.name,
            {"rome": root / "rome", "util": root / "util"},
            [
                stub("rome.layer_stats", layer_stats=None),
                stub("util.globals", STATS_DIR=None),
                stub("matplotlib"),
                stub("matplotlib.style", context=None),
            ],
            ["rome.rome_main", "rome.compute_u", "rome.compute_v"],
        )
        self._inverse = InverseSource()

    def edit(self, case: Case) -> PeerEdit:
        """One edit as ``Peer.edit`` says.

        Raises:
            TokenizerMismatchError: the tokenizer is not a fast one, or adds a BOS.
        """
        _check(case.tok)
        model, request = case.model, case.request
        spec = ModelSpec.of(model)
        projection = spec.down_projection(case.hparams.layer)
        device = projection.weight.device
        fields = hparam_fields(spec, projection, case)
        fields["context_template_length_params"] = []
        peer_hparams = self._main.ROMEHyperParams(**fields)
        peer_tok = _Tokenizer(tokenizer_for_peer(case.tok), device)
        peer_request = {
            "prompt": request.prompt.rstrip(" "),
            "subject": request.subject,
            "target_new": {"str": request.target},
        }
        inverse = self._inverse(case.second_moment, device)
        with _named_width(model.config):
            return run_edit(
                self._main,
                projection,
                (model, peer_tok, [peer_request], peer_hparams),
                [
                    (self._main, {"CONTEXT_TEMPLATES_CACHE": list(case.context_templates)}),
                    (self._compute_u, {"get_inv_cov": lambda *args, **kwargs: inverse}),
                    (self._compute_v, {"torch": torch_view(device)}),
                ],
            )


def _check(tok: PreTrainedTokenizerBase) -> None:
    if not tok.is_fast:
        raise TokenizerMismatchError(
            f"peer 'kmeng01' needs a fast tokenizer, got {type(tok).__name__}: load it with "
            "use_fast=True"
        )
    if leading_ids(tok):
        raise TokenizerMismatchError(
            "peer 'kmeng01' counts the BOS that this tokenizer adds twice, and edits another "
            "place: compare it on a model without one"
        )


@contextmanager
def _named_width(config: PretrainedConfig) -> Iterator[None]:
    """While open, the width of the residual stream is called ``n_embd`` too."""
    if hasattr(config, "n_embd"):
        yield
        return
    config.n_embd = config.get_text_config().hidden_size
    try:
        yield
    finally:
        del config.n_embd


class _Encoding(BatchEncoding):
    """A batch whose ``to("cuda")`` moves it to the model's device."""

    def __init__(self, data: BatchEncoding, device: torch.device) -> None:
        super().__init__(data.data, data.encodings)
        self._device = device

    def to(self, device: Any, **kwargs: Any) -> BatchEncoding:
        return super().to(self._device if device == "cuda" else device, **kwargs)


class _Tokenizer:
    """The tokenizer, whose batches are ``_Encoding``."""

    def __init__(self, tok: PreTrainedTokenizerBase, device: torch.device) -> None:
        self._tok, self._device = tok, device

    def __call__(self, *args: Any, **kwargs: Any) -> _Encoding:
        return _Encoding(self._tok(*args, **kwargs), self._device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tok, name)
