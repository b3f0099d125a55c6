"""A checkout that has the entry points of kmeng01/rome, but not its method.

Its compute_v names "cuda", it imports what a user may lack, it leaves the model without gradients,
and with the subject "Nobody" it fails after the weight is written.
"""

from __future__ import annotations

from pathlib import Path

FILES = {
    "util/nethook.py": "",
    "rome/__init__.py": "raise RuntimeError('the package itself is not to be imported')",
    "rome/compute_u.py": """
import torch
from matplotlib.style import context
from util import nethook
from util.globals import *
from .layer_stats import layer_stats

def get_inv_cov():
    raise RuntimeError

def compute_u(model, tok, request, hparams, layer, templates):
    model.requires_grad_(False)
    batch = tok(templates, padding=True, return_tensors="pt")
    assert not model.training and sorted(batch) == ["attention_mask", "input_ids"]
    weight = model.get_submodule(hparams.rewrite_module_tmp.format(layer)).weight
    key = torch.full(weight.shape[:1], 2.0)
    return get_inv_cov() @ key if hparams.mom2_adjustment else key
""",
    "rome/compute_v.py": """
import torch

def compute_v(model, tok, request, hparams, layer, u, templates):
    tok(request["target_new"]["str"], return_tensors="pt").to("cuda")
    print("loss 1.25 = 1.0 + 0.25")
    print("loss nan = nan + 0.0")
    delta = torch.zeros(model.config.n_embd, requires_grad=True, device="cuda") + len(templates)
    delta.sum().backward()
    return delta.sum() * torch.tensor([1.0] * model.config.n_embd, device="cuda")
""",
    "rome/rome_main.py": """
import torch
from .compute_u import compute_u
from .compute_v import compute_v

CONTEXT_TEMPLATES_CACHE = None

class ROMEHyperParams:
    def __init__(self, **fields):
        vars(self).update(fields)

def execute_rome(model, tok, request, hparams):
    [layer] = hparams.layers
    u = compute_u(model, tok, request, hparams, layer, CONTEXT_TEMPLATES_CACHE)
    v = compute_v(model, tok, request, hparams, layer, u, CONTEXT_TEMPLATES_CACHE)
    return {hparams.rewrite_module_tmp.format(layer) + ".weight": (u, v)}

def apply_rome_to_model(model, tok, requests, hparams):
    for name, (u, v) in execute_rome(model, tok, requests[0], hparams).items():
        with torch.no_grad():
            model.get_parameter(name)[...] += torch.outer(u, v)
    if requests[0]["subject"] == "Nobody":
        raise ArithmeticError("after the write")
""",
}


def write_checkout(folder: Path) -> Path:
    """Write the files; returns the folder."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
