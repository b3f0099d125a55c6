"""BaseEditor: EasyEdit's way to edit and judge, on top of ``rome_fast.edit``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rome_fast.easyedit.hparams import ROMEHyperParams
from rome_fast.easyedit.loading import load
from rome_fast.easyedit.metrics import check_metric
from rome_fast.easyedit.requests import build_requests, check_requests
from rome_fast.easyedit.run import Metrics, Run
from rome_fast.easyedit.statistics import find_second_moment
from rome_fast.easyedit.view import sharing_all_but
from rome_fast.edit import opened
from rome_fast.errors import HparamsError, InvalidArgumentError
from rome_fast.model.spec import DownProjection, ModelSpec
from rome_fast.types import EditResult

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from rome_fast.moment.second_moment import SecondMoment


class BaseEditor:
    """Edits the model that its settings name, and measures each edit before and after.

    Attributes:
        model, tok: what is edited.
        hparams: ROMEHyperParams; what is changed in it holds from the next call on.
        model_name, alg_name, device: as in EasyEdit.
        results: the EditResults of the last call, in order: probabilities, warnings, which second
            moment was used, and ``revert()`` (the last first).
    """

    def __init__(self, hparams: ROMEHyperParams, *, second_moment: object = None) -> None:
        """Load the model.

        Args:
            second_moment: as ``rome_fast.edit`` takes it; None goes by the settings.

        Raises:
            HparamsError: the settings have a bad value, or name a model that cannot be loaded.
        """
        if not isinstance(hparams, ROMEHyperParams):
            raise HparamsError(
                f"hparams must be ROMEHyperParams, got {type(hparams).__name__}: "
                "ROMEHyperParams.from_hparams(path) reads files"
            )
        hparams.rome()
        self.hparams = hparams
        self.alg_name = hparams.alg_name
        self.model, self.tok = load(hparams)
        self.model_name = str(self.model.config._name_or_path)
        self.device = self.model.device
        self.results: list[EditResult] = []
        self._given = second_moment
        self._moments: dict[tuple[object, ...], SecondMoment | str | None] = {}

    @classmethod
    def from_hparams(cls, hparams: ROMEHyperParams, *, second_moment: object = None) -> Self:
        """The same as the constructor."""
        return cls(hparams, second_moment=second_moment)

    def edit(
        self,
        prompts: str | Sequence[str],
        target_new: str | Sequence[str],
        ground_truth: str | Sequence[str | None] | None = None,
        target_neg: str | Sequence[str] | None = None,
        rephrase_prompts: str | Sequence[str | None] | None = None,
        locality_inputs: Mapping[str, Mapping[str, Any]] | None = None,
        portability_inputs: Mapping[str, Mapping[str, Any]] | None = None,
        sequential_edit: bool = False,
        verbose: bool = True,
        *,
        subject: str | Sequence[str] | None = None,
        test_generation: bool = False,
        eval_metric: str = "exact match",
        keep_original_weight: bool = False,
        pre_edit: Metrics | None = None,
        pre_file: str | Path | None = None,
        train_ds: object = None,
        loc_prompts: object = None,
    ) -> tuple[Metrics, Any, dict[str, Tensor]]:
        """Edit one fact or several; a string stands for a list of one.

        Args:
            prompts: full texts, each of which contains its subject.
            target_new: what they should go on with.
            ground_truth: what they go on with now; only kept in the metrics.
            target_neg, train_ds, loc_prompts: other methods'; without effect on ROME.
            rephrase_prompts: other texts that should go on with the new target, or None.
            locality_inputs: ``{name: {"prompt": [...], "ground_truth": [...]}}`` with one entry per
                edit: a text, a list of texts, or None. Their answers should not change.
            portability_inputs: the same, for texts whose answers follow from the edit.
            subject: for each prompt the part of it that is looked up.

        The others are those of ``edit_requests``, and so is what is returned and raised.
        """
        requests = build_requests(
            prompts,
            target_new,
            ground_truth,
            target_neg,
            rephrase_prompts,
            subject,
            locality_inputs,
            portability_inputs,
        )
        return self.edit_requests(
            requests,
            sequential_edit,
            verbose,
            test_generation,
            eval_metric=eval_metric,
            keep_original_weight=keep_original_weight,
            pre_edit=pre_edit,
            pre_file=pre_file,
        )

    def edit_requests(
        self,
        requests: Sequence[Mapping[str, Any]],
        sequential_edit: bool = False,
        verbose: bool = True,
        test_generation: bool = False,
        *,
        eval_metric: str = "exact match",
        keep_original_weight: bool = False,
        pre_edit: Metrics | None = None,
        pre_file: str | Path | None = None,
    ) -> tuple[Metrics, Any, dict[str, Tensor]]:
        """Edit what EasyEdit's request dictionaries ask for.

        The returned model carries every edit. ``sequential_edit`` says what "post" is measured
        on: True, right after each edit, on the model with those before it; False, on the model
        with that edit alone (each is then searched twice, for the metrics and for the model).

        Args:
            requests: dicts with prompt, subject, target_new, and if wanted ground_truth,
                rephrase_prompt, locality, portability ``{name: {"prompt", "ground_truth"}}``.
            verbose: print a line per edit.
            test_generation: also measure the n-gram entropy of a text generated from the prompt.
            keep_original_weight: leave ``self.model`` as it is, and return a second model that
                shares every tensor with it but the edited weight.
            pre_edit: metrics of an earlier call; its "pre" are taken instead of measured.
            pre_file: where to write them to, as JSON.

        Returns:
            ``(metrics, edited_model, weights_copy)``: a dict per request with "pre", "post",
            "case_id" and "requested_rewrite"; the model; and the edited weight's name with a copy
            of it from before this call.

        Raises:
            RomeFastError: a subclass says what was wrong; the weights are bit-identical to before.
        """
        check_metric(eval_metric)
        checked = check_requests(requests)
        if pre_edit is not None and len(pre_edit) != len(checked):
            raise InvalidArgumentError(
                f"pre_edit has {len(pre_edit)} entries for {len(checked)} requests"
            )
        settings = self.hparams.rome()
        spec = ModelSpec.of(self.model)
        projection = spec.down_projection(settings.layer, settings.shared_expert)
        self.hparams.check_module(projection)
        moment = self._second_moment(spec, projection)
        name, weight = f"{projection.name}.weight", projection.weight
        model = sharing_all_but(self.model, weight) if keep_original_weight else self.model
        before = weight.detach().clone()
        with opened(model, self.tok, self.hparams.rome(), None, "auto", None, moment) as engine:
            run = Run(engine, checked, test_generation, verbose)
            run.measure_before(pre_edit, pre_file)
            if sequential_edit or len(checked) == 1:
                run.edit_and_measure()
            else:
                run.measure_alone()
                run.edit_all()
            run.tell(sequential_edit)  # inside: where a filter raises, all is undone
        self.results = run.results
        return run.metrics, model, {name: before}

    def batch_edit(self, *args: object, **kwargs: object) -> NoReturn:
        """Not for ROME, in EasyEdit either; raises InvalidArgumentError."""
        raise InvalidArgumentError(
            "ROME edits one fact at a time, so there is no batch_edit: use edit(..., "
            "sequential_edit=True), or rome_fast.edit_many(..., order='independent')"
        )

    def _second_moment(
        self, spec: ModelSpec, projection: DownProjection
    ) -> SecondMoment | str | None:
        """Found once per setting and kept: given texts may be readable only once."""
        hparams = self.hparams
        key = (
            projection.layer,
            hparams.mom2_adjustment,
            hparams.mom2_dtype,
            hparams.mom2_n_samples,
            hparams.mom2_dataset,
            hparams.stats_dir,
        )
        if key not in self._moments:
            self._moments[key] = find_second_moment(
                hparams, spec, self.tok, projection, self._given
            )
        return self._moments[key]
