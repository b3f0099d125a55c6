"""EasyEdit's ROMEHyperParams: its files, its names, and what each of them does here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.errors import EditWarning, HparamsError, warn
from rome_fast.hparams import RomeHparams, read_file

if TYPE_CHECKING:
    from typing_extensions import Self

    from rome_fast.model.spec import DownProjection

_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(kw_only=True)
class ROMEHyperParams:
    """Settings under the names of EasyEdit's ROME files; only ``layers`` has to be there.

    Fields can be set afterwards, as EasyEdit's can; values are checked when they are used.

    How the fact is edited, as in ``rome_fast.RomeHparams``, whose defaults hold: ``layers``,
    ``fact_token``, ``v_num_grad_steps``, ``v_lr``, ``v_weight_decay``, ``clamp_norm_factor``,
    ``kl_factor``, ``context_template_length_params``, and what EasyEdit does not have: ``variant``,
    ``v_stop_loss``, ``seed``, ``compute_dtype``, ``shared_expert``.

    Which model ``BaseEditor`` edits:

    Attributes:
        model_name: a folder, a name on the hub, or a pair (model, tokenizer) that is loaded.
        device: number of a CUDA device, or a torch device. None takes CUDA where it is. A loaded
            model stays where it is.
        fp16: load in float16 instead of float32.
        model_parallel: load with ``device_map="auto"``.

    Where the second moment comes from:

    Attributes:
        mom2_adjustment: False stands for the identity, and every edit warns of it.
        stats_dir, mom2_dataset, mom2_n_samples, mom2_dtype: name the file of statistics, as
            kmeng01/rome and EasyEdit lay it out; it is used where it is there. Where it is not,
            ordinary text that ships with rome_fast is read. No data set is downloaded.

    Accepted without effect: ``rewrite_module_tmp`` (a warning where it names another matrix than
    the one that is edited), the other module names, ``v_loss_layer``, and ``max_length`` (nothing
    is truncated).
    """

    layers: Sequence[int]
    alg_name: str = "ROME"
    model_name: Any = None
    device: int | str | None = None
    fp16: bool = False
    model_parallel: bool = False

    fact_token: str = RomeHparams.fact_token
    v_num_grad_steps: int = RomeHparams.v_num_grad_steps
    v_lr: float = RomeHparams.v_lr
    v_weight_decay: float = RomeHparams.v_weight_decay
    clamp_norm_factor: float = RomeHparams.clamp_norm_factor
    kl_factor: float = RomeHparams.kl_factor
    v_stop_loss: float = RomeHparams.v_stop_loss
    context_template_length_params: Sequence[Sequence[int]] | None = (
        RomeHparams.context_template_length_params
    )
    variant: str = RomeHparams.variant
    seed: int = RomeHparams.seed
    compute_dtype: str = RomeHparams.compute_dtype
    shared_expert: bool = RomeHparams.shared_expert
    contexts: str = RomeHparams.contexts
    end: str = "none"  # as theirs
    max_answer_tokens: int = RomeHparams.max_answer_tokens
    solver: str = RomeHparams.solver

    mom2_adjustment: bool = RomeHparams.mom2_adjustment
    mom2_dataset: str | None = None
    mom2_n_samples: int | None = None
    mom2_dtype: str = RomeHparams.mom2_dtype
    stats_dir: str = "data/stats"

    rewrite_module_tmp: str | None = None
    layer_module_tmp: str | None = None
    mlp_module_tmp: str | None = None
    attn_module_tmp: str | None = None
    ln_f_module: str | None = None
    lm_head_module: str | None = None
    v_loss_layer: int | None = None
    max_length: int | None = None

    @classmethod
    def from_hparams(cls, hparams_name_or_path: str | Path) -> Self:
        """Read one of EasyEdit's files; ``.yaml`` is added to a path without a suffix.

        Raises:
            HparamsError: no such file, an unknown key, or a value out of range.
        """
        path = str(hparams_name_or_path)
        return cls._from_file(path if path.endswith(_SUFFIXES) else f"{path}.yaml")

    @classmethod
    def from_json(cls, fpath: str | Path) -> Self:
        """Read one of kmeng01/rome's files; raises as ``from_hparams`` does."""
        return cls._from_file(fpath)

    @classmethod
    def _from_file(cls, path: str | Path) -> Self:
        fields = read_file(path)
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(map(str, fields)) - known):
            raise HparamsError(
                f"hparams: {path} has unknown key {', '.join(map(repr, unknown))}; "
                f"known: {', '.join(sorted(known))}"
            )
        if "layers" not in fields:
            raise HparamsError(f"hparams: {path} lacks 'layers'")
        made = cls(**fields)
        made.rome()
        return made

    def rome(self) -> RomeHparams:
        """The part of it that says how a fact is edited, checked; HparamsError names the field."""
        if self.alg_name != "ROME":
            raise HparamsError(
                f"hparams.alg_name must be 'ROME', got {self.alg_name!r} "
                "(R-ROME is variant='mean_key')"
            )
        n = self.mom2_n_samples
        if n is not None and (type(n) is not int or n < 1):
            raise HparamsError(f"hparams.mom2_n_samples must be an integer >= 1, got {n!r}")
        names = [field.name for field in dataclasses.fields(RomeHparams)]
        return RomeHparams(**{name: getattr(self, name) for name in names})

    def check_module(self, projection: DownProjection) -> None:
        """Warn where ``rewrite_module_tmp`` names another matrix than the one that is edited."""
        named = (self.rewrite_module_tmp or projection.name).replace("{}", str(projection.layer))
        if named != projection.name:
            warn(
                f"hparams.rewrite_module_tmp names {named}, but the matrix that ends the MLP of "
                f"layer {projection.layer} is {projection.name}: that one is edited",
                EditWarning,
            )
