"""ROME as its paper and its first implementation run it: slow, whole-model, float64, one page.

Everything faster is compared with this file, so it shares no code with the library: it finds its
own token positions, caches nothing, runs the whole model in every step and inverts C densely.

Modules that compute in float32 whatever they are given (Llama's RMSNorm and rotary tables) do so
here as well; for those models agreement ends near 1e-6 rather than 1e-12.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

KL_TEMPLATE = "{} is a"
EARLY_STOP_LOSS = 5e-2
VARIANTS = ("original", "mean_key", "prompt_key", "both_keys")


@dataclass(frozen=True)
class OracleEdit:
    """What one edit computes. All tensors are float64 on the model's device."""

    losses: list[float]  # one per forward pass, the last one included
    delta: Tensor  # [d_value] optimised offset of the MLP output
    u: Tensor  # [d_key] unit norm
    v: Tensor  # [d_value]
    dense: Tensor  # the update, shaped and laid out like the edited weight
    lookup_idx: list[int]  # one per row: the context templates in order, then the KL row


def oracle_edit(
    model: nn.Module,
    tok,
    *,
    prompt: str,
    subject: str,
    target: str,
    context_templates: list[str],
    second_moment: Tensor | None,
    down_projection: str,
    fact_token: str = "subject_last",
    steps: int = 20,
    lr: float = 0.5,
    weight_decay: float = 0.5,
    clamp: float = 4.0,
    kl_factor: float = 0.0625,
    variant: str = "original",
) -> OracleEdit:
    """Compute the rank-one update that makes `prompt` with `subject` continue with `target`.

    `prompt` and every context template hold "{}" once; the first template must be the bare "{}".
    `second_moment` is C = E[k k^T], [d_key, d_key]; None stands for the identity.
    The model handed in is copied, so neither its weights nor its gradients change.
    """
    if context_templates[0] != "{}" or variant not in VARIANTS:
        raise ValueError(f'the first template must be "{{}}" and variant one of {VARIANTS}')
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    module = model.get_submodule(down_projection)
    templates = [template.replace("{}", prompt) for template in context_templates]
    texts = [template.replace("{}", subject) for template in [*templates, KL_TEMPLATE]]
    lookup = [find_lookup(tok, t, subject, fact_token) for t in [*templates, KL_TEMPLATE]]
    target_ids = find_target_ids(tok, texts[0], target)
    prompts = [tok(text)["input_ids"] for text in texts]
    delta, target_init, losses = optimise_delta(
        model, module, prompts, target_ids, lookup,
        steps=steps, lr=lr, weight_decay=weight_decay, clamp=clamp, kl_factor=kl_factor,
    )  # fmt: skip
    keys, outputs = keys_and_outputs(model, module, prompts[:-1], lookup[:-1])
    identity = torch.eye(keys.shape[1]).to(keys)
    inverse = identity if second_moment is None else torch.linalg.inv(second_moment.to(keys))
    u, v = solve(keys, outputs, inverse, delta, target_init, variant)
    dense = torch.outer(u, v) if isinstance(module, Conv1D) else torch.outer(v, u)
    return OracleEdit(losses, delta, u, v, dense, lookup)


# ---------------------------------------------------------------------------- words and positions


def find_lookup(tok, template: str, subject: str, fact_token: str) -> int:
    """Index, in the ids of the filled template, of the token where the fact is looked up.

    The subject is found by its characters, so a token that the subject shares with its
    surroundings counts as the subject's; tokens that are only a word-start mark do not.
    """
    prefix, suffix = template.split("{}")
    start = len(prefix) + len(subject) - len(subject.lstrip())
    end = start + len(subject.strip())
    encoded = tok(prefix + subject + suffix, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if fact_token == "last":
        return len(ids) - 1
    marks = [token.strip("▁Ġ ") == "" for token in tok.convert_ids_to_tokens(ids)]
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and start < b and not marks[i]]
    if not inside:
        raise ValueError(f"the subject {subject!r} holds no token of {template!r}")
    decoded = tok.decode(ids[inside[0] : inside[-1] + 1], clean_up_tokenization_spaces=False)
    if subject.strip() not in decoded:
        raise ValueError(f"tokens {inside} decode to {decoded!r}, which lacks {subject!r}")
    after = inside[-1] + 1 if suffix and inside[-1] + 1 < len(ids) else inside[-1]
    return {
        "subject_last": inside[-1],
        "subject_first": inside[0],
        "subject_first_after_last": after,
    }[fact_token]


def find_target_ids(tok, prompt_text: str, target: str) -> list[int]:
    """Ids of the target as the continuation of the prompt, with one space between the two."""
    spaced = target if target.startswith(" ") else " " + target
    bare = tok("a", add_special_tokens=False)["input_ids"]
    if not tok.convert_ids_to_tokens(bare)[0].startswith("▁"):
        return tok(spaced, add_special_tokens=False)["input_ids"]
    # Tokenised alone, the target would get a second word-start mark from such a tokenizer.
    before, joint = tok(prompt_text)["input_ids"], tok(prompt_text + spaced)["input_ids"]
    if joint[: len(before)] != before:
        raise ValueError(f"{spaced!r} merges with the end of {prompt_text!r}")
    return joint[len(before) :]


# ------------------------------------------------------------------------------ running the model


def right_padded_logits(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """Logits [n_rows, longest, vocab] of rows of ids, padded on the right whatever `tok` does."""
    longest = max(map(len, rows))
    device = next(model.parameters()).device
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    # No token sees the padding behind it, so it needs no mask; some families make NaN of one.
    kwargs = {"attention_mask": torch.ones_like(ids), "use_cache": False}
    if "position_ids" in inspect.signature(model.forward).parameters:
        kwargs["position_ids"] = torch.arange(longest, device=device).expand_as(ids)
    return model(input_ids=ids, **kwargs).logits


@contextmanager
def forward_hook(module: nn.Module, hook: Callable) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def keys_and_outputs(
    model: nn.Module, module: nn.Module, rows: list[list[int]], lookup: list[int]
) -> tuple[Tensor, Tensor]:
    """What goes into and comes out of `module` at each lookup: [n, d_key] and [n, d_value]."""
    seen = {}

    def keep(_module, args, output: Tensor) -> None:
        seen.update(key=args[0], output=output.clone())  # Falcon adds to it in place

    with forward_hook(module, keep):
        right_padded_logits(model, rows)
    row = torch.arange(len(rows))
    keys, outputs = (_by_row(seen[name], len(rows)) for name in ("key", "output"))
    return keys[row, lookup], outputs[row, lookup]


def _by_row(x: Tensor, n_rows: int) -> Tensor:
    """[n_rows, t, width], also of what OPT has flattened to [n_rows * t, width]."""
    return x.view(n_rows, -1, x.shape[-1])


# ------------------------------------------------------------------------------------- value: v*


def optimise_delta(
    model: nn.Module,
    module: nn.Module,
    prompts: list[list[int]],
    target_ids: list[int],
    lookup: list[int],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    clamp: float,
    kl_factor: float,
) -> tuple[Tensor, Tensor, list[float]]:
    """(delta [d_value], unedited MLP output of the first row [d_value], loss history).

    `prompts` are the rewriting rows and, last, the KL row. N steps are N forward passes and at
    most N - 1 updates of delta: the last pass, and any pass with a loss below 0.05, only looks.
    """
    rows = [ids + target_ids[:-1] for ids in prompts[:-1]] + prompts[-1:]
    _, outputs = keys_and_outputs(model, module, rows, lookup)
    target_init = outputs[0]
    kl_init = _kl_row_log_probs(right_padded_logits(model, rows).detach(), lookup)
    delta = torch.zeros_like(target_init, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=lr)

    def add_delta(_module, _args, output: Tensor) -> Tensor:
        output = output.clone()
        _by_row(output, len(rows))[torch.arange(len(rows)), lookup] += delta
        return output

    losses = []
    for step in range(steps):
        with forward_hook(module, add_delta):
            logits = right_padded_logits(model, rows)
        loss = _target_nll(logits, prompts[:-1], target_ids)
        kl_now = _kl_row_log_probs(logits, lookup)
        loss = loss + kl_factor * (kl_now.exp() * (kl_now - kl_init)).sum()
        loss = loss + weight_decay * delta.norm() / target_init.norm() ** 2
        losses.append(loss.item())
        if losses[-1] < EARLY_STOP_LOSS or step == steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            radius = clamp * target_init.norm()
            if delta.norm() > radius:
                delta *= radius / delta.norm()
    return delta.detach(), target_init, losses


def _target_nll(logits: Tensor, prompts: list[list[int]], target_ids: list[int]) -> Tensor:
    """Mean over rows, and over the target's tokens, of minus the log-probability; scalar."""
    nll = []
    for row, ids in zip(logits, prompts, strict=False):  # the KL row has no target
        for t, target_id in enumerate(target_ids):
            nll.append(-row[len(ids) - 1 + t].log_softmax(-1)[target_id])
    return torch.stack(nll).mean()


def _kl_row_log_probs(logits: Tensor, lookup: list[int]) -> Tensor:
    """Log-probabilities [vocab] after the subject in the KL row: at its lookup, not its end."""
    return logits[-1, lookup[-1]].log_softmax(-1)


# --------------------------------------------------------------------------------- update: u, v


def solve(
    keys: Tensor,
    outputs: Tensor,
    inverse: Tensor,
    delta: Tensor,
    target_init: Tensor,
    variant: str,
) -> tuple[Tensor, Tensor]:
    """(u [d_key], v [d_value]) from the keys [n, d_key] and outputs [n, d_value] of n contexts.

    Row 0 is the bare prompt. `original` points u along the mean key and divides by the prompt's;
    `mean_key` and `prompt_key` use one key twice; `both_keys` moves the outputs of both by delta.
    """
    prompt_key, mean_key = keys[0], keys.mean(0)
    if variant == "both_keys" and not torch.allclose(prompt_key, mean_key, rtol=1e-12, atol=0):
        both = torch.stack([prompt_key, mean_key], dim=1)  # K: [d_key, 2]
        gram_inverse = torch.linalg.inv(both.T @ inverse @ both)
        # R (K^T C^-1 K)^-1 K^T C^-1 with R = delta [1, 1]: the row below is what delta multiplies.
        row = torch.ones(2).to(keys) @ gram_inverse @ both.T @ inverse
        return row / row.norm(), delta * row.norm()
    if variant in ("prompt_key", "both_keys"):  # one key stated twice is a single constraint
        numerator, denominator, residual = prompt_key, prompt_key, delta
    elif variant == "mean_key":
        numerator, denominator = mean_key, mean_key
        residual = target_init + delta - outputs.mean(0)
    else:
        numerator, denominator = mean_key, prompt_key
        residual = target_init + delta - outputs[0]
    u = inverse @ numerator
    u = u / u.norm()
    return u, residual / (denominator @ u)
