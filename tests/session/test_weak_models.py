"""Models on which edits do not hold: the Session stops while those that are there still do."""

import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import rome_fast
from rome_fast.errors import UnhealthyError
from rome_fast.evaluate.records import Question
from rome_fast.evaluate.scoring import score

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.filterwarnings("ignore::rome_fast.errors.EditWarning"),
    pytest.mark.filterwarnings("ignore::rome_fast.errors.SessionWarning"),
]

N_KNOWN, N_EDITS = 400, 150


@pytest.fixture(scope="module")
def toy():
    return rome_fast.demo.load()


def trained(tok, facts, width, steps):
    """A GPT-2 of four blocks that was shown the facts for so many steps."""
    torch.manual_seed(0)
    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    size = {"n_positions": 128, "n_embd": width, "n_layer": 4, "n_head": width // 16}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tok), **size, **drop))
    rows = [tok.encode(f"{f.prompt.format(f.subject)} {f.target}.") for f in facts[:N_KNOWN]]
    adam, drawn = torch.optim.AdamW(model.parameters(), lr=3e-3), random.Random(0)
    for _ in range(steps):
        part = drawn.sample(rows, 128)
        n = max(map(len, part))
        ids = torch.tensor([row + [0] * (n - len(row)) for row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (n - len(row)) for row in part])
        labels = ids.masked_fill(mask == 0, -100)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval()


def outcome(model, tok, facts, layer, n_edits=N_EDITS, **options):
    """Edits in the weight: shares of them said and of others unchanged, how many, stopped."""
    hparams = rome_fast.RomeHparams.for_model(model).replace(layers=(layer,))
    asked = [Question(f.prompt.format(f.subject), f.target) for f in facts[N_EDITS:N_KNOWN]]
    before = [said.argmax_ids for said in score(model, tok, asked)]
    requests = [rome_fast.EditRequest(f.prompt, f.subject, f.target_new) for f in facts[:n_edits]]
    stopped = False
    with rome_fast.Session(model, tok, hparams, form="weight", **options) as session:
        try:
            session.edit_many(requests, progress=False)
        except UnhealthyError:
            stopped = True
        there = [edit.request for edit in session.log.holding()]
    said = [s.exact for s in score(model, tok, [Question.of(r) for r in there])] or [True]
    after = [said.argmax_ids for said in score(model, tok, asked)]
    kept = [a == b for a, b in zip(before, after, strict=True)]
    return sum(said) / len(said), sum(kept) / len(kept), len(there), stopped


UNWATCHED = rome_fast.HealthCheck(every=0)
CASES = {
    "trained for a moment": (64, 120, 1),
    "edited in the last block": (64, 200, 3),
    "of 32 dimensions": (32, 400, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_on_which_edits_do_not_hold(toy, name):
    _, tok, facts = toy
    width, steps, layer = CASES[name]
    model = trained(tok, facts, width, steps)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    said, kept, _, stopped = outcome(model, tok, facts, layer)
    assert stopped
    assert said >= 0.9 and kept >= 0.9
    for key, parameter in model.named_parameters():
        parameter.data.copy_(weights[key])
    said, kept, *_ = outcome(model, tok, facts, layer, 40, health=UNWATCHED)
    assert said < 0.9 or kept < 0.9, "nothing was to be stopped"


def test_a_model_on_which_many_edits_do_not_hold(toy):
    """The embedded toy behind its layer of facts: by the first hundred edits a sixth is lost."""
    model, tok, facts = toy
    said, kept, n_edits, stopped = outcome(model, tok, facts, 3)
    assert stopped and n_edits >= 8
    assert said >= 0.9 and kept >= 0.9
