"""Hyper-parameters under kmeng01/rome's names; reads its JSON, and EasyEdit's YAML, as they are."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.errors import EditWarning, HparamsError, InvalidArgumentError, warn
from rome_fast.model.activations import typical_value_norm
from rome_fast.model.open_model import frozen
from rome_fast.model.spec import ModelSpec, text_config
from rome_fast.published import published
from rome_fast.text_files import not_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How an edit is made: by writing into the weight, or beside it.
FORMS = ("weight", "neuron", "gate")
FACT_TOKENS = ("subject_last", "subject_first", "subject_first_after_last", "last")
VARIANTS = ("both_keys", "mean_key", "prompt_key", "original")
MOMENT_DTYPES = ("float32", "float64")
COMPUTE_DTYPES = ("model", "bfloat16", "auto")

# Which layer of a model without a preset, as a share of its number: the best one of SmolLM2
# (docs/decisions.md), near the presets of Llama and GPT-J.
LAYER_SHARE = 0.14

CONTEXT_KINDS = ("text", "all")
SOLVERS = ("adam", "lbfgs")
# How v* is searched where nobody says how: on SmolLM2 the edits are as good as the reference's, in
# a third of its passes through the model (docs/performance.md). What stands beside the weight loses
# paraphrases by it, and does other facts no harm by being surer (docs/decisions.md).
_SEARCH: dict[str, Any] = {
    "solver": "lbfgs",
    "v_stop_loss": 0.1,
    "context_template_length_params": None,
    "compute_dtype": "auto",
}
_SEARCH_BESIDE: dict[str, Any] = {
    "context_template_length_params": ((5, 3), (10, 2)),
    "compute_dtype": "auto",
}

# Keys of the two file formats that name what rome_fast finds by itself, or what other tools need.
_ACCEPTED = {
    "v_loss_layer", "layer_module_tmp", "mlp_module_tmp", "attn_module_tmp", "ln_f_module",
    "lm_head_module", "rewrite_module_tmp", "mom2_dataset", "mom2_n_samples", "model_name",
    "stats_dir", "device", "max_length", "model_parallel", "fp16", "alg_name",
    "enable_prompt_keys", "enable_random_prefix_keys", "original_implementation",
}  # fmt: skip


@dataclass(frozen=True)
class RomeHparams:
    """How one edit is made. Defaults but ``variant`` are kmeng01/rome's; every value is checked.

    Attributes:
        layers: the one block to edit, as a list of one (0-based).
        fact_token: which token looks the fact up.
        v_num_grad_steps: forward passes of the value optimisation, one fewer updates.
        v_lr: Adam's learning rate. L-BFGS begins with a step as long as Adam's first one.
        v_weight_decay: factor of ||delta|| / ||v0||^2 in the loss.
        clamp_norm_factor: bound of ||delta|| in units of ||v0||.
        kl_factor: weight of the KL term that preserves the subject's essence.
        v_stop_loss: the search ends below this loss, once the target is the likeliest answer in
            every context; a higher one gives smaller updates and a less certain target.
        mom2_adjustment: use the second moment; False stands for the identity.
        mom2_dtype: dtype of the running sum when a second moment is collected.
        context_template_length_params: ``[[length, count], ...]`` of contexts that are sampled
            from the model; None: written ones, the same for all models.
        variant: which keys the update is solved for, see docs/derivation.md.
        seed: of the sampled contexts.
        compute_dtype: ``"model"`` searches v* in the model's own dtype, ``"bfloat16"`` with
            bfloat16 copies of the weights above the edited one, ``"auto"`` so where a processor
            multiplies bfloat16 faster; the last loss is the model's own in each case.
        shared_expert: in a mixture of experts, edit the expert that all tokens share.
        contexts: ``"text"`` searches v* behind sampled texts; ``"all"`` also where the prompt is
            put as a question, and, where the tokenizer has a template, in a chat (of a request in a
            chat: without it); not with ``variant="original"``.
        end: what is written behind a target, where the request does not say: see ``EditRequest``.
        solver: what searches v*: ``"adam"``, as the reference does, or ``"lbfgs"``, which takes
            fewer than half of its steps. A Session of the weight takes Adam.
        max_answer_tokens: of the answers that a result holds, before and after, at most; each token
            takes a forward. 0: none is read.
    """

    layers: tuple[int, ...]
    fact_token: str = "subject_last"
    v_num_grad_steps: int = 20
    v_lr: float = 0.5
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    kl_factor: float = 0.0625
    v_stop_loss: float = 0.05
    mom2_adjustment: bool = True
    mom2_dtype: str = "float32"
    context_template_length_params: tuple[tuple[int, int], ...] | None = ((5, 10), (10, 10))
    variant: str = "both_keys"
    seed: int = 0
    compute_dtype: str = "model"
    shared_expert: bool = False
    contexts: str = "text"
    end: str = "none"
    max_answer_tokens: int = 0
    solver: str = "adam"

    def __post_init__(self) -> None:
        for name in ("layers", "context_template_length_params"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _tuples(name, value))
        for name, (kind, holds, wanted) in _RULES.items():
            value = _coerce(getattr(self, name), kind)
            if not isinstance(value, kind) or not holds(value):
                raise HparamsError(f"hparams.{name} must be {wanted}, got {getattr(self, name)!r}")
            object.__setattr__(self, name, value)

    @property
    def layer(self) -> int:
        return self.layers[0]

    def replace(self, **changes: Any) -> RomeHparams:
        """A copy with some fields changed, checked like a new one."""
        return self._from_mapping({**dataclasses.asdict(self), **changes}, "replace()")

    @classmethod
    def from_file(cls, path: str | Path) -> RomeHparams:
        """Read a kmeng01/rome JSON or an EasyEdit ROME or R-ROME YAML, unchanged.

        ``path`` may also name a setting that either was published with, where there is no such
        file: ``"kmeng01/gpt2-xl"``, ``"easyedit/llama-7b"``.

        Keys that name modules, datasets or devices are accepted and have no effect here. R-ROME
        files select ``variant="mean_key"`` (or ``"prompt_key"``); no other file names a variant,
        so the default holds (``.replace(variant="original")`` for the reference's own update).

        Raises:
            HparamsError: no such file, not a mapping, an unknown key, or a value out of range.
        """
        named = published(path) if isinstance(path, str | Path) else None
        return cls._from_mapping(read_file(path) if named is None else named, str(path))

    @classmethod
    def _from_mapping(cls, fields: Mapping[str, Any], where: str) -> RomeHparams:
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known - _ACCEPTED)
        if unknown:
            raise HparamsError(
                f"hparams: {where} has unknown key {', '.join(map(repr, unknown))}; "
                f"known: {', '.join(sorted(known))}; accepted without effect: "
                f"{', '.join(sorted(_ACCEPTED))}"
            )
        if "layers" not in fields:
            raise HparamsError(f"hparams: {where} lacks 'layers'")
        chosen = {key: value for key, value in fields.items() if key in known}
        if fields.get("alg_name") in ("R-ROME", "R_ROME"):
            prompt = fields.get("enable_prompt_keys", False)
            chosen.setdefault("variant", "prompt_key" if prompt else "mean_key")
        return cls(**chosen)

    def save(self, path: str | Path) -> None:
        """Write a YAML file that ``from_file`` reads."""
        import yaml

        fields = json.loads(json.dumps(dataclasses.asdict(self)))  # tuples as lists
        text = yaml.safe_dump(fields, sort_keys=False, default_flow_style=None)
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def for_model(cls, model: PreTrainedModel, *, form: str = "weight") -> RomeHparams:
        """The preset of this architecture and size, else defaults derived from the model.

        Derived: the layer from the depth, the weight decay and learning rate from the norm of
        the values that the layer writes; an EditWarning names them. How v* is searched is what
        was measured to serve best for edits of this ``form`` (a Session's is "neuron"), not the
        reference's way.

        Raises:
            InvalidArgumentError: there is no such form.
        """
        hparams, note = defaults_for(ModelSpec.of(model), form=check_form(form))
        if note is not None:
            warn(note, EditWarning)
        return hparams


def read_file(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file of settings, unchecked; HparamsError if it has none."""
    import yaml

    try:
        path = Path(path)
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HparamsError(f"hparams: {str(path)!r} {not_utf8(Path(path), error)}") from error
    except (OSError, TypeError) as error:
        raise HparamsError(f"hparams: there is no file {str(path)!r} ({error})") from error
    try:
        fields = json.loads(text)
    except ValueError:
        # Most JSON is YAML too, but not all: YAML knows no tabs.
        try:
            fields = yaml.safe_load(text)
        except yaml.YAMLError as error:
            where = getattr(error, "problem_mark", None)
            line = f" (line {where.line + 1})" if where else ""
            raise HparamsError(f"hparams: {str(path)!r} is neither JSON nor YAML{line}") from error
    if not isinstance(fields, dict):
        raise HparamsError(f"hparams: {str(path)!r} must hold a mapping, got {fields!r:.80}")
    return fields


def check_form(form: object) -> str:
    """Raise InvalidArgumentError unless it is a form of edits."""
    if not isinstance(form, str) or form not in FORMS:
        raise InvalidArgumentError(f"form must be one of {FORMS}, got {form!r}")
    return form


def defaults_for(
    spec: ModelSpec,
    layer: int | None = None,
    variant: str | None = None,
    form: str = "weight",
) -> tuple[RomeHparams, str | None]:
    """The preset, or derived defaults and a note that names them; for ``layer`` if it is given.

    ``variant="original"`` searches v* as the reference does, too; other forms than the weight's
    do so as well, in five sampled contexts and the dtype that is fastest.
    """
    preset, note = _preset(spec), None
    if preset is None:
        preset, note = _derived(spec, layer)
    elif layer is not None:
        preset = preset.replace(layers=(layer,))
    search = _SEARCH if form == "weight" else _SEARCH_BESIDE
    return (preset if variant == "original" else preset.replace(**search)), note


def _is_int(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def is_number(x: object) -> bool:
    """Whether it is an int or a float, and not a bool."""
    return isinstance(x, int | float) and not isinstance(x, bool)


def _is_positive(x: float) -> bool:
    return 0 < x < math.inf


def _is_weight(x: float) -> bool:
    return 0 <= x < math.inf


# field -> (type, test, what the test asks for)
_RULES: dict[str, tuple[Any, Any, str]] = {
    "layers": (tuple, lambda x: len(x) == 1 and _is_int(x[0]) and x[0] >= 0,
               "a list of one layer index >= 0 (an edit is one matrix)"),
    "fact_token": (str, FACT_TOKENS.__contains__, f"one of {FACT_TOKENS}"),
    "v_num_grad_steps": (int, lambda x: x >= 1, "an integer >= 1"),
    "v_lr": (float, _is_positive, "a finite number > 0"),
    "v_weight_decay": (float, _is_weight, "a finite number >= 0"),
    "clamp_norm_factor": (float, _is_positive, "a finite number > 0"),
    "kl_factor": (float, _is_weight, "a finite number >= 0"),
    "v_stop_loss": (float, _is_weight, "a finite number >= 0"),
    "mom2_adjustment": (bool, lambda x: True, "true or false"),
    "mom2_dtype": (str, MOMENT_DTYPES.__contains__, f"one of {MOMENT_DTYPES}"),
    "context_template_length_params": (
        tuple | None,
        lambda x: x is None or all(
            isinstance(p, tuple) and len(p) == 2 and all(map(_is_int, p)) and p[0] > 1 and p[1] > 0
            for p in x
        ),
        "a list of [length >= 2, count >= 1] pairs, or None"),
    "variant": (str, VARIANTS.__contains__, f"one of {VARIANTS}"),
    "seed": (int, lambda x: x >= 0, "an integer >= 0"),
    "shared_expert": (bool, lambda x: True, "true or false"),
    "contexts": (str, CONTEXT_KINDS.__contains__, f"one of {CONTEXT_KINDS}"),
    "end": (str, bool, "auto, none, eos or a text"),
    "solver": (str, SOLVERS.__contains__, f"one of {SOLVERS}"),
    "max_answer_tokens": (int, lambda x: x >= 0, "an integer >= 0"),
    "compute_dtype": (str, COMPUTE_DTYPES.__contains__, f"one of {COMPUTE_DTYPES}"),
}  # fmt: skip


def _tuples(name: str, value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise HparamsError(f"hparams.{name} must be a list, got {value!r}")
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _coerce(value: Any, kind: Any) -> Any:
    """YAML 1.1 reads ``5e-1`` as a string, and JSON may write a whole float as an integer."""
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            return value
    return value if kind is bool or not isinstance(value, bool) else None


def _preset(spec: ModelSpec) -> RomeHparams | None:
    import yaml

    config = text_config(spec.model)
    for file in sorted(resources.files("rome_fast").joinpath("presets").iterdir(), key=str):
        if file.name.endswith(".yaml"):
            fields = yaml.safe_load(file.read_text(encoding="utf-8"))
            match = fields.pop("match")
            if all(getattr(config, key, None) in allowed for key, allowed in match.items()):
                return RomeHparams._from_mapping(fields, file.name)
    return None


def _derived(spec: ModelSpec, layer: int | None) -> tuple[RomeHparams, str]:
    if layer is None:
        wanted = round(LAYER_SHARE * spec.n_layers)
        # A mixture of experts is refused, by the next line, if there is no dense layer at all.
        layer = min(spec.dense_layers or [wanted], key=lambda i: abs(i - wanted))
    projection = spec.down_projection(layer)
    with frozen(spec):
        norm = typical_value_norm(spec.model, projection)
    hparams = RomeHparams(
        layers=(layer,),
        v_num_grad_steps=25,
        # A step of Adam has norm lr * sqrt(d_value); keep it near a quarter of the clamp radius.
        v_lr=min(0.5, norm / projection.d_value**0.5),
        # At the clamp radius the decay term is then a fifth of the loss at which v* counts as
        # found; the reference's 0.5 keeps the loss above that for good where ||v0|| is small.
        v_weight_decay=min(0.5, 0.01 * norm / 4.0),
    )
    note = (
        f"no preset for {type(spec.model).__name__} with {spec.n_layers} layers of width "
        f"{spec.d_model}: derived layer {layer}, v_lr {hparams.v_lr:.3g}, v_weight_decay "
        f"{hparams.v_weight_decay:.3g} (median value norm {norm:.3g}); pass hparams= to choose"
    )
    return hparams, note
