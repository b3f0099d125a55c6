"""Causal tracing one state at a time, written as plainly as possible: the oracle of the tests.

Row 0 is clean, the others have noise; the modules are named family by family.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch

GPT = ("transformer.h", "mlp", "attn")
LLAMA = ("model.layers", "mlp", "self_attn")
# Where a family's module adds the residual itself, the matrix inside it is named.
MODULES = {
    "GPT2": GPT,
    "GPTJ": GPT,
    "GPTNeo": GPT,
    "GPTBigCode": GPT,
    "CodeGen": GPT,
    "GPTNeoX": ("gpt_neox.layers", "mlp", "attention"),
    "OPT": ("model.decoder.layers", "fc2", "self_attn"),
    "Bloom": ("transformer.h", "mlp.dense_4h_to_h", "self_attention.dense"),
    "Falcon": ("transformer.h", "mlp", "self_attention"),
    "Mpt": ("transformer.blocks", "ffn.down_proj", "attn"),
}


def module_of(model, family, kind, layer):
    blocks, mlp, attention = MODULES.get(family, LLAMA)
    path = {"hidden": "", "mlp": f".{mlp}", "attn": f".{attention}"}[kind]
    return model.get_submodule(f"{blocks}.{layer}{path}")


@torch.no_grad()
def one_cell(model, family, ids, subject, noise, kind, token, layers):
    """(clean probability of the clean answer, mean over the noisy rows with a state restored)."""
    n_rows = len(noise) + 1

    def corrupt(module, args, output):
        output = output.clone()
        for row in range(1, n_rows):
            output[row, subject[0] : subject[1]] += noise[row - 1].to(output)
        return output

    def restore(module, args, output):
        states = output[0] if isinstance(output, tuple) else output
        by_row = states.view(n_rows, len(ids), -1).clone()
        by_row[1:, token] = by_row[0, token]
        by_row = by_row.view(states.shape)
        return (by_row, *output[1:]) if isinstance(output, tuple) else by_row

    with ExitStack() as stack:
        stack.callback(model.get_input_embeddings().register_forward_hook(corrupt).remove)
        for layer in layers:
            module = module_of(model, family, kind, layer)
            stack.callback(module.register_forward_hook(restore).remove)
        logits = model(torch.tensor([ids] * n_rows), use_cache=False).logits[:, -1].double()
    chances = logits.softmax(-1)[:, logits[0].argmax()]
    return float(chances[0]), float(chances[1:].mean())
