"""An edit as the benchmarks take it, of a miniature."""

from __future__ import annotations

from helpers import CONTEXTS, REQUEST
from tiny import tiny_second_moment

import rome_fast
from rome_fast.bench.case import Case


def make_case(model_and_tok, hparams, identity=False):
    model, tok = model_and_tok
    d_key = 256 if model.config.model_type == "gpt2" else 176
    return Case(
        model,
        tok,
        rome_fast.EditRequest.parse(REQUEST),
        hparams.replace(variant="original", v_num_grad_steps=4, v_lr=0.03),
        tuple(CONTEXTS),
        None if identity else tiny_second_moment(d_key),
    )
