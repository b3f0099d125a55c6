"""The forwards of causal tracing: many restored states of one prompt in each.

Nothing below a restored state differs from the corrupted run in which nothing is restored. So the
blocks below the lowest restored one of a batch return their output of that run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rome_fast.locate.parts import find_part, residual_of
from rome_fast.model.intercept import answering, hidden_of, hooked, reading_only, with_hidden
from rome_fast.model.nonfinite import located
from rome_fast.model.spec import input_device
from rome_fast.prompt.logits import log_probs_of

if TYPE_CHECKING:
    from torch import Tensor

    from rome_fast.model.spec import ModelSpec

# Tokens of one forward.
BATCH_TOKENS = {"cpu": 512, "cuda": 32768}


@dataclass(frozen=True)
class Cell:
    """One restored state: the output of a kind of module at one token, in some layers."""

    kind: str
    token: int
    layers: range


class Tracer:
    """One prompt: its clean run, its corrupted run, and what restoring a state brings back.

    Args:
        ids: of the prompt, [n_tokens].
        subject: first token of the subject, and the one after its last.
        noise: [n_samples, n_subject, d_embedding], added to the subject's embeddings; the same
            for every cell.
        kinds: of which clean states are kept.

    Attributes:
        answer_id: the likeliest next token of the clean run.
        high, low: its probability there, and its mean over the corrupted rows.
    """

    def __init__(
        self,
        spec: ModelSpec,
        ids: Sequence[int],
        subject: tuple[int, int],
        noise: Tensor,
        kinds: Sequence[str],
    ) -> None:
        self._spec, self._ids, self._subject, self._noise = spec, list(ids), subject, noise
        self._parts = {
            (kind, layer): find_part(spec, layer, kind)
            for kind in kinds
            for layer in range(spec.n_layers)
        }
        self._clean: dict[tuple[str, int], Tensor] = {}
        with ExitStack() as stack:
            for key, part in self._parts.items():
                stack.enter_context(hooked(part, self._keeping_clean(key)))
            clean = self._logits(1)[0]
        self.answer_id = int(clean.argmax())
        self.high = float(self._probability(clean[None]).detach()[0])
        self._corrupted: list[Any] = []
        with ExitStack() as stack:
            stack.enter_context(self._noised(1))
            for block in spec.blocks:
                stack.enter_context(hooked(block, self._keep_corrupted))
            self.low = float(self._probability(self._logits(self.n_samples)).detach().mean())

    @property
    def n_samples(self) -> int:
        return len(self._noise)

    def scores(
        self, cells: Sequence[Cell], done: Callable[[int], object] = lambda n: None
    ) -> list[float]:
        """Mean probability of the answer over the corrupted rows with each cell restored.

        Args:
            done: called with the number of cells that each forward has finished.
        """
        device = input_device(self._spec.model).type
        size = max(1, BATCH_TOKENS.get(device, 4096) // (self.n_samples * len(self._ids)))
        # From low layers to high ones, so that as few blocks as possible have to run.
        order = sorted(range(len(cells)), key=lambda i: cells[i].layers.start)
        found = [0.0] * len(cells)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            scores = self._scores_of_batch([cells[i] for i in batch])
            for i, score in zip(batch, scores, strict=True):
                found[i] = score
            done(len(batch))
        return found

    def _scores_of_batch(self, cells: Sequence[Cell]) -> list[float]:
        """Rows are the samples of the first cell, then those of the second, and so on."""
        n_rows = len(cells) * self.n_samples
        lowest = min(cell.layers.start for cell in cells)
        with ExitStack() as stack:
            stack.enter_context(self._noised(len(cells)))
            if lowest > 0:
                below = self._corrupted[lowest - 1]
                hidden = hidden_of(below).repeat(len(cells), 1, 1)
                for block in self._spec.blocks[:lowest]:
                    stack.enter_context(answering(block, with_hidden(below, hidden)))
            for (kind, layer), part in self._parts.items():
                at = [i for i, c in enumerate(cells) if c.kind == kind and layer in c.layers]
                if at:
                    tokens = [cells[i].token for i in at]
                    hook = self._restoring(self._clean[kind, layer], n_rows, at, tokens)
                    stack.enter_context(hooked(part, hook))
            chances = self._probability(self._logits(n_rows))
        means: list[float] = chances.view(len(cells), -1).mean(1).tolist()
        return means

    def _restoring(
        self, clean: Tensor, n_rows: int, cells: Sequence[int], tokens: Sequence[int]
    ) -> Callable[..., Any]:
        """A hook that puts the clean states [n_tokens, d] in place for some of the cells."""
        first = torch.tensor(cells)[:, None] * self.n_samples
        rows = (first + torch.arange(self.n_samples)).flatten()
        columns = torch.tensor(tokens).repeat_interleave(self.n_samples)

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
            whole = hidden_of(output)
            at = rows.to(whole.device), columns.to(whole.device)
            # Some families flatten rows and tokens before the MLP.
            hidden = whole.reshape(n_rows, -1, whole.shape[-1]).clone()
            hidden[at] = clean[at[1]]
            residual = residual_of(module, args)
            if residual is not None:
                hidden[at] += residual.reshape(hidden.shape)[at]
            return with_hidden(output, hidden.view_as(whole))

        return hook

    def _keep_corrupted(self, block: nn.Module, args: Any, output: Any) -> None:
        self._corrupted.append(with_hidden(output, hidden_of(output).clone()))

    def _keeping_clean(self, key: tuple[str, int]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            residual = residual_of(module, args)
            # A copy: Falcon adds its attention to the MLP's output in place.
            state = hidden_of(output).clone()
            state = state if residual is None else state - residual
            self._clean[key] = state.reshape(len(self._ids), -1)

        return hook

    @contextmanager
    def _noised(self, n_cells: int) -> Iterator[None]:
        start, end = self._subject

        def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            noised = output.clone()
            noised[:, start:end] += self._noise.to(output).repeat(n_cells, 1, 1)
            return noised

        with hooked(self._spec.model.get_input_embeddings(), add):
            yield

    def _logits(self, n_rows: int) -> Tensor:
        """Logits [n_rows, vocabulary] after the last token of ``n_rows`` copies of the prompt."""
        model = self._spec.model
        device = input_device(model)
        last = torch.full((n_rows,), len(self._ids) - 1)
        with reading_only(model.get_output_embeddings(), torch.arange(n_rows), last):
            logits: Tensor = model(
                input_ids=torch.tensor(self._ids, device=device).expand(n_rows, -1),
                attention_mask=torch.ones(n_rows, len(self._ids), dtype=torch.int64, device=device),
                use_cache=False,
            ).logits[0]
        return logits

    def _probability(self, logits: Tensor) -> Tensor:
        """Probability of the answer in each row, float64 [n_rows]."""
        targets = torch.full((len(logits),), self.answer_id, device=logits.device)
        places = torch.arange(len(logits), device=logits.device)
        with located(self._spec.model, lambda: self._logits(1)):
            return log_probs_of(logits, places, targets).exp().cpu()
