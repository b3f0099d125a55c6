"""zjunlp/EasyEdit's ROME, a grown fork of kmeng01/rome, from a checkout.

What is replaced while an edit runs, and why; its files stay as they are:

- ``rome_main.CONTEXT_TEMPLATES_CACHE`` holds the given templates, which it otherwise samples once.
- ``compute_u.get_inv_cov`` returns the given C^-1, which it otherwise computes from Wikipedia and
  keeps; so its time holds no statistics. Every configuration that EasyEdit ships says
  ``mom2_adjustment: false``; here a given C is used.
- ``layer_stats`` and matplotlib are stubs while importing: they need data sets, and a plot that is
  never drawn. The packages' ``__init__`` are not run: they import every editor that EasyEdit has.

The call is ``apply_rome_to_model``, without ``BaseEditor``, which evaluates before and after. Its
tokenizer pads on the right, as ``BaseEditor`` has it for ROME on Llama; what the code counts
holds for no other side.

Its rules are left alone: it stops at a loss below 0.05, runs the whole model in every step on all
templates, and puts a space before every target, so the target is handed over without one. Where it
is not comparable:

- ``fact_token`` "last" is the last column of a padded batch where u is computed, which is padding
  in all but the longest row, and "subject_first" counts from the end of the text without padding.
- With a tokenizer that marks word starts (Llama), all of a target's tokens but the last are
  decoded and joined to the prompt without the space before them: a target of several tokens is
  another text there. One of a single token is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rome_fast.bench.case import GIVEN, IDENTITY
from rome_fast.bench.peers.base import PeerEdit
from rome_fast.bench.peers.harness import (
    InverseSource,
    hparam_fields,
    run_edit,
    tokenizer_for_peer,
)
from rome_fast.bench.peers.isolate import commit_of, import_modules, require_files, stub
from rome_fast.model.spec import ModelSpec

if TYPE_CHECKING:
    from rome_fast.bench.case import Case

_ROME = "easyeditor.models.rome"


class EasyEdit:
    """Peer ``easyedit``: its ROME, on any decoder that its code takes."""

    name = "easyedit"
    c_modes: tuple[str, ...] = (
        GIVEN,
        IDENTITY,
    )  # the one that it knows, the one that all its files ask for

    def __init__(self, root: Path) -> None:
        files = ("easyeditor/models/rome/rome_main.py", "easyeditor/util/nethook.py")
        require_files(self.name, root, files, "zjunlp/EasyEdit")
        self.commit = commit_of(root, ("easyeditor",)) or "unknown commit"
        packages = ("easyeditor", "easyeditor.models", "easyeditor.util", _ROME)
        self._main, self._compute_u = import_modules(
            self.name,
            {name: root.joinpath(*name.split(".")) for name in packages},
            [
                stub(f"{_ROME}.layer_stats", layer_stats=None),
                stub("matplotlib"),
                stub("matplotlib.style", context=None),
            ],
            [f"{_ROME}.rome_main", f"{_ROME}.compute_u"],
        )
        self._inverse = InverseSource()

    def edit(self, case: Case) -> PeerEdit:
        """One edit as ``Peer.edit`` says."""
        model, request = case.model, case.request
        spec = ModelSpec.of(model)
        projection = spec.down_projection(case.hparams.layer)
        device = projection.weight.device
        peer_hparams = self._main.ROMEHyperParams(
            **hparam_fields(spec, projection, case),
            context_template_length_params=[],
            alg_name="ROME",
            device=str(device),
            model_name="",
            stats_dir="",
        )
        peer_tok = tokenizer_for_peer(case.tok)
        peer_request = {
            "prompt": request.prompt.rstrip(" "),
            "subject": request.subject,
            "target_new": request.target.lstrip(" "),
        }
        inverse = self._inverse(case.second_moment, device)
        return run_edit(
            self._main,
            projection,
            (model, peer_tok, [peer_request], peer_hparams),
            [
                (self._main, {"CONTEXT_TEMPLATES_CACHE": list(case.context_templates)}),
                (self._compute_u, {"get_inv_cov": lambda *args, **kwargs: inverse}),
            ],
        )
