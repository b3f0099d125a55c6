"""locate: which states of the model carry a fact, token by token and layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rome_fast.errors import InvalidArgumentError, InvalidRequestError
from rome_fast.locate.parts import KINDS
from rome_fast.locate.trace import Trace
from rome_fast.locate.tracer import Cell, Tracer
from rome_fast.model.open_model import frozen
from rome_fast.model.spec import ModelSpec, check_tokenizer, input_device, max_positions
from rome_fast.prompt.chat import Frame
from rome_fast.prompt.encode import passage_of
from rome_fast.prompt.ids import decode
from rome_fast.prompt.lookup import locate_subject
from rome_fast.timings import progress_bar
from rome_fast.types import EditRequest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The reference's window, in layers, and the depth of the shallowest model in its paper.
WINDOW, DEEP = 10, 24


@dataclass(frozen=True)
class TracedPrompt:
    """Token ids of a prompt, and its subject among them.

    Attributes:
        subject: first token of the subject, and the one after its last.
    """

    text: str
    ids: tuple[int, ...]
    subject: tuple[int, int]

    @classmethod
    def of(
        cls, model: PreTrainedModel, tok: PreTrainedTokenizerBase, request: EditRequest
    ) -> TracedPrompt:
        """Raises InvalidRequestError if the prompt is longer than the model takes."""
        passage = passage_of(request, Frame.of(tok, request.conversation))
        ids, last = locate_subject(tok, passage, "subject_last")
        _, first = locate_subject(tok, passage, "subject_first")
        limit = max_positions(model)
        if limit is not None and len(ids) > limit:
            raise InvalidRequestError(
                f"prompt {request.text[:60]!r} has {len(ids)} tokens, but the model takes {limit}: "
                "shorten it"
            )
        return cls(passage.text, tuple(ids), (first, last + 1))


@dataclass(frozen=True)
class TraceSettings:
    """How a trace is made.

    Attributes:
        noise: standard deviation of the noise, in units of that of the subjects' embeddings.
        samples: how many corrupted rows a score is averaged over.
        window: layers that are restored together for "mlp" and "attn".
        seed: of the noise.
    """

    noise: float
    samples: int
    window: int
    seed: int

    @classmethod
    def of(
        cls, n_layers: int, noise: float, samples: int, window: int | None, seed: int
    ) -> TraceSettings:
        """Check them; the default window is the reference's, or a quarter of a shallow model's."""
        if window is None:
            window = WINDOW if n_layers >= DEEP else max(1, n_layers // 4)
        if not isinstance(noise, int | float) or not 0 < noise < math.inf:
            raise InvalidArgumentError(f"noise must be a finite number > 0, got {noise!r}")
        for name, value in (("samples", samples), ("window", window)):
            if type(value) is not int or value < 1:
                raise InvalidArgumentError(
                    f"{name} must be a whole number of 1 or more, got {value!r}"
                )
        if type(seed) is not int or seed < 0:
            raise InvalidArgumentError(f"seed must be a whole number of 0 or more, got {seed!r}")
        return cls(float(noise), samples, window, seed)

    def layers_around(self, layer: int, n_layers: int) -> range:
        """The window around a layer: as many layers below as above; if even, one more below."""
        first = layer - self.window // 2
        return range(max(0, first), min(n_layers, first + self.window))

    def draw(self, prompt: TracedPrompt, spread: float, d_embedding: int) -> Tensor:
        """Noise [samples, n_subject, d_embedding] from a generator of its own, float64."""
        n_subject = prompt.subject[1] - prompt.subject[0]
        generator = torch.Generator().manual_seed(self.seed)
        shape = self.samples, n_subject, d_embedding
        return self.noise * spread * torch.randn(shape, generator=generator, dtype=torch.float64)


def locate(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    *,
    kinds: Sequence[str] = KINDS,
    noise: float = 3.0,
    samples: int = 10,
    window: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Trace:
    """Find the states that carry a fact: causal tracing (ROME, section 2.1; causal_trace.py).

    The subject's embeddings are corrupted with Gaussian noise, so that the model no longer says
    its answer. Then one state at a time, of one token and layer, is put back to what it was
    without noise: the more of the answer's probability returns, the more of the fact that state
    carries. All states share the same noise. The model is not changed.

    Args:
        prompt: a template with one ``{}`` for the subject, or a text that contains it.
        kinds: what is restored: ``"hidden"``, the whole output of a block; ``"mlp"`` or
            ``"attn"``, what the MLPs or attentions of a window of layers write.
        noise: in standard deviations of the subject's embeddings (the reference's ``s3``, whose
            deviation is that of the subjects of all prompts traced).
        samples: how many corrupted rows each score is averaged over.
        window: how many layers, around each, ``"mlp"`` and ``"attn"`` restore together; None
            takes the reference's 10, or a quarter of the layers in a model of fewer than 24.
        seed: of the noise, which has a generator of its own.
        progress: show a bar.

    Returns:
        A Trace: scores [n_tokens, n_layers] per kind.

    Raises:
        InvalidRequestError: the prompt is too long; SubjectNotFoundError where it has no subject.
        InvalidArgumentError: another argument is out of range.
        UnsupportedModelError: the model is no decoder, or a block has no module of a kind.
        NonFiniteError: the model's logits are NaN or infinite.
    """
    # The prompt is checked like that of an edit; the target is not used.
    request = EditRequest(prompt, subject, target=".")
    chosen = _checked_kinds(kinds)
    spec = ModelSpec.of(model)
    model = spec.model
    check_tokenizer(model, tok)
    settings = TraceSettings.of(spec.n_layers, noise, samples, window, seed)
    with torch.no_grad(), frozen(spec):
        traced = TracedPrompt.of(model, tok, request)
        spread, d_embedding = embedding_spread(model, [traced])
        tracer = Tracer(
            spec, traced.ids, traced.subject, settings.draw(traced, spread, d_embedding), chosen
        )
        scores = _all_scores(tracer, chosen, len(traced.ids), spec.n_layers, settings, progress)
    return Trace(
        prompt=traced.text,
        subject=request.subject,
        tokens=tuple(decode(tok, [i]) or str(tok.convert_ids_to_tokens(i)) for i in traced.ids),
        subject_range=traced.subject,
        answer=decode(tok, [tracer.answer_id]),
        high=tracer.high,
        low=tracer.low,
        scores=scores,
        settings={
            "model": type(model).__name__,
            "noise": settings.noise,
            "noise_std": settings.noise * spread,
            "samples": samples,
            "window": settings.window,
            "seed": seed,
        },
    )


def embedding_spread(model: PreTrainedModel, prompts: Sequence[TracedPrompt]) -> tuple[float, int]:
    """Standard deviation over all numbers in the embeddings of the subjects, and their width."""
    ids = [i for prompt in prompts for i in prompt.ids[slice(*prompt.subject)]]
    rows = model.get_input_embeddings()(torch.tensor([ids], device=input_device(model)))
    return float(rows.double().std()), rows.shape[-1]


def _checked_kinds(kinds: Sequence[str]) -> list[str]:
    unique = [kinds] if isinstance(kinds, str) else list(dict.fromkeys(kinds))
    if not unique or any(kind not in KINDS for kind in unique):
        raise InvalidArgumentError(f"kinds must be some of {KINDS}, got {kinds!r}")
    return unique


def _all_scores(
    tracer: Tracer,
    kinds: Sequence[str],
    n_tokens: int,
    n_layers: int,
    settings: TraceSettings,
    progress: bool,
) -> dict[str, Tensor]:
    scores = {}
    total = len(kinds) * n_tokens * n_layers
    with progress_bar(show=progress, total=total, desc="tracing", unit="state") as bar:
        for kind in kinds:
            cells = [
                Cell(kind, token, restored_layers(settings, kind, layer, n_layers))
                for token in range(n_tokens)
                for layer in range(n_layers)
            ]
            found = torch.tensor(tracer.scores(cells, bar.update), dtype=torch.float64)
            scores[kind] = found.view(n_tokens, n_layers)
    return scores


def restored_layers(settings: TraceSettings, kind: str, layer: int, n_layers: int) -> range:
    """The layers that are restored together for the score of ``layer``."""
    if kind == "hidden":
        return range(layer, layer + 1)
    return settings.layers_around(layer, n_layers)
