"""hiyouga/FastEdit, the package ``pyfastedit`` (``fastedit`` on PyPI is a video editor).

What is replaced while an edit runs, and why; its files stay as they are:

- ``rome_main.CONTEXT_TEMPLATES`` holds the given templates instead of its 22 fixed ones.
- ``compute_v`` names "cuda" for one tensor: it goes where the model is.
- ``rome_main`` casts v to ``torch.float16``, which fails on every other model: the name stands
  for the dtype of the model there.

It is measured in its own terms, and its update is not expected to be that of the others:

- It has no second moment: C is the identity always.
- ``v_weight_decay`` is Adam's own, on the offset, and not a term of the loss: the same number
  would hold the offset at zero, so it stays at what FastEdit ships.
- The search stops at a loss below 0.005 instead of 0.05, so it takes more steps.
- There is a second KL prompt, in Chinese, held at its last token.
- Rows are padded on the left and no position ids are given: shorter rows of a model with absolute
  positions (GPT-2) are read at shifted positions, those of one with rotary ones are not.
- It puts no space before the target; one is put here, unless there is one.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

from rome_fast.bench.case import IDENTITY
from rome_fast.bench.peers.base import PeerEdit
from rome_fast.bench.peers.harness import (
    hparam_fields,
    run_edit,
    tokenizer_for_peer,
    torch_view,
)
from rome_fast.bench.peers.isolate import commit_of, import_modules, require_files
from rome_fast.errors import InvalidArgumentError
from rome_fast.model.spec import ModelSpec

if TYPE_CHECKING:
    from rome_fast.bench.case import Case

_FILES = ("fastedit/rome/rome_main.py", "fastedit/utils/nethook.py")


class FastEdit:
    """Peer ``fastedit``: from a checkout, or from the folder that pip installed it to."""

    name = "fastedit"
    c_modes: tuple[str, ...] = (IDENTITY,)

    def __init__(self, root: Path) -> None:
        require_files(self.name, root, _FILES, "hiyouga/FastEdit")
        self.commit = commit_of(root, ("fastedit",)) or _version(root)
        packages = ("fastedit", "fastedit.rome", "fastedit.utils")
        self._main, self._compute_v = import_modules(
            self.name,
            {name: root.joinpath(*name.split(".")) for name in packages},
            [],
            ["fastedit.rome.rome_main", "fastedit.rome.compute_v"],
        )

    @classmethod
    def installed(cls) -> FastEdit:
        """The installed package. Raises InvalidArgumentError if there is none."""
        spec = importlib.util.find_spec("fastedit")
        folders = list(spec.submodule_search_locations or []) if spec else []
        root = Path(folders[0]).parent if folders else None
        if root is None or not (root / _FILES[0]).is_file():
            found = f"the package in {str(root)!r} is another" if root else "it is not installed"
            raise InvalidArgumentError(
                f"peer 'fastedit': {found}: pip install --no-deps pyfastedit, or fastedit=PATH"
            )
        return cls(root)

    def edit(self, case: Case) -> PeerEdit:
        """One edit as ``Peer.edit`` says; ``second_moment`` has no effect."""
        model, request = case.model, case.request
        spec = ModelSpec.of(model)
        projection = spec.down_projection(case.hparams.layer)
        device, dtype = projection.weight.device, projection.weight.dtype
        fields = hparam_fields(spec, projection, case)
        shipped = self._main.ROMEHyperParams.from_name("llama-7b")
        fields["v_weight_decay"] = shipped.v_weight_decay
        fields["mom2_adjustment"] = shipped.mom2_adjustment
        peer_hparams = self._main.ROMEHyperParams(**fields)
        peer_tok = tokenizer_for_peer(case.tok, padding_side="left")
        target = request.target if request.target[0].isspace() else f" {request.target}"
        peer_request = {
            "prompt": request.prompt.rstrip(" "),
            "subject": request.subject,
            "target": target,
        }
        own_main = {
            "CONTEXT_TEMPLATES": list(case.context_templates),
            "torch": torch_view(device, float16=dtype),
        }
        return run_edit(
            self._main,
            projection,
            (model, peer_tok, [peer_request], peer_hparams),
            [(self._main, own_main), (self._compute_v, {"torch": torch_view(device)})],
        )


def _version(root: Path) -> str:
    found = distributions(name="pyfastedit", path=[str(root)])
    return next((f"v{each.version}" for each in found), "unknown version")
