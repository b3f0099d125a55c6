"""The objective of one request as a function of its offset, and the edit made of it.

The whole model runs in every pass and nothing is shared with rome_fast's own search, so that the
two can be compared (`solver_study.py` does).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import rome_fast
from benchmarks.edit.solver_candidates import Ball, Evaluation
from rome_fast.model.activations import read_activations
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.resolve import resolve_second_moment
from rome_fast.prompt.contexts import sample_context_templates
from rome_fast.prompt.encode import TokenizedEdit, encode
from rome_fast.prompt.greedy import greedy_continuations
from rome_fast.prompt.target import find_target_ids
from rome_fast.update.solve import apply_update_, build_constraint
from rome_fast.update.undo import WeightHistory
from rome_fast.value.key import Keys


class Bench:
    """A model with its second moment, contexts and settings."""

    def __init__(self, model: Any, tok: Any) -> None:
        self.model, self.tok = model.eval().requires_grad_(False), tok
        self.hparams = rome_fast.RomeHparams.for_model(model)
        spec = ModelSpec.of(model)
        self.projection = spec.down_projection(self.hparams.layer)
        self.moment = resolve_second_moment(None, spec, tok, self.projection, torch.float32)
        self.contexts = sample_context_templates(
            model, tok, self.hparams.context_template_length_params
        )

    def says(self, text: str, target: str) -> str:
        """Greedy continuation of a text, as many tokens as the target has."""
        n_tokens = len(find_target_ids(self.tok, text, target))
        ids = list(self.tok(text)["input_ids"])
        return greedy_continuations(self.model, self.tok, [ids], n_tokens)[0].strip()


def read_keys(bench: Bench, tokens: TokenizedEdit) -> Keys:
    """Keys and values at the lookup positions, of one request alone."""
    read = read_activations(bench.model, bench.projection, tokens.input_ids, tokens.attention_mask)
    rows = torch.arange(len(tokens.lookup_idx))
    keys, values = (x[rows, tokens.lookup_idx] for x in read)
    return Keys(
        key=keys[: tokens.n_contexts].mean(0),
        prompt_key=keys[tokens.prompt_row],
        mean_value=values[: tokens.n_contexts].mean(0),
        value_init=values[tokens.prompt_row],
    )


class Problem:
    """One request: its objective and what the edit does to its prompts."""

    def __init__(self, bench: Bench, case: dict[str, Any]) -> None:
        self.bench, self.case, hparams = bench, case, bench.hparams
        self.request = rome_fast.EditRequest(case["prompt"], case["subject"], case["target"])
        self.tokens: TokenizedEdit = encode(
            bench.tok, self.request, bench.contexts, hparams.fact_token
        )
        self.keys = read_keys(bench, self.tokens)
        norm = float(self.keys.value_init.norm())
        self.ball = Ball(
            radius=hparams.clamp_norm_factor * norm,
            lr=hparams.v_lr,
            decay=hparams.v_weight_decay / norm**2,
            kl_factor=hparams.kl_factor,
        )
        self.kl_init: Tensor | None = None
        self.near_before = [bench.says(*pair) for pair in case["neighbours"]]

    @torch.enable_grad()
    def __call__(self, delta: Tensor) -> Evaluation:
        """One pass: every row gets an offset of its own, so one backward gives every gradient."""
        tokens, n = self.tokens, self.tokens.n_contexts
        rows = delta.expand(len(tokens.lookup_idx), -1).clone().requires_grad_()
        log_probs = self.logits(rows).log_softmax(-1)
        span = torch.arange(len(tokens.target_ids))
        read = log_probs[torch.arange(n)[:, None], tokens.target_start[:, None] + span]
        row_losses = -read.gather(-1, tokens.target_ids.expand(n, -1)[..., None]).mean((1, 2))
        now = log_probs[n, tokens.lookup_idx[n]]
        self.kl_init = now.detach() if self.kl_init is None else self.kl_init
        kl = (now.exp() * (now - self.kl_init)).sum()
        (gradients,) = torch.autograd.grad(row_losses.sum() + kl, [rows])
        norm, ball = float(delta.norm()), self.ball
        gradient = gradients[:n].mean(0) + ball.kl_factor * gradients[n]
        return Evaluation(
            delta=delta,
            loss=float((row_losses.mean() + ball.kl_factor * kl).detach()) + ball.decay * norm,
            gradient=gradient + ball.decay * delta / max(norm, 1e-12),
            row_losses=row_losses.detach(),
            row_gradients=gradients[:n],
            kl=float(kl.detach()),
            kl_gradient=gradients[n],
            said=bool((read.argmax(-1) == tokens.target_ids).all()),
        )

    def logits(self, rows: Tensor) -> Tensor:
        """Of the whole model, [n_rows, t, vocabulary], with offsets [n_rows, d] at the lookups."""
        at = torch.arange(len(rows)), self.tokens.lookup_idx

        def move(module: Any, args: Any, output: Tensor) -> Tensor:
            return output.index_put(at, rows, accumulate=True)

        handle = self.bench.projection.module.register_forward_hook(move)
        try:
            return self.bench.model(
                input_ids=self.tokens.input_ids,
                attention_mask=self.tokens.attention_mask,
                use_cache=False,
            ).logits
        finally:
            handle.remove()

    def quality(self, delta: Tensor) -> dict[str, Any]:
        """Edit with an offset, ask the prompts, take it back."""
        bench, case = self.bench, self.case
        history = WeightHistory(bench.projection, "torch")
        weight_norm = float(bench.projection.weight.norm())
        constraint = build_constraint(bench.hparams.variant, self.keys, delta)
        update = apply_update_(history, constraint, bench.moment)
        target = case["target"]
        near = [bench.says(*pair) for pair in case["neighbours"]]
        found = {
            "rewrite": [bench.says(self.request.text, target) == target],
            "paraphrase": [bench.says(text, target) == target for text in case["paraphrases"]],
            "neighbours": [a == b for a, b in zip(self.near_before, near, strict=True)],
            "relative_norm": update.norm / weight_norm,
        }
        history.rewind(0)
        return found
