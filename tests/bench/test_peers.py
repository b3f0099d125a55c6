"""Adapters of other implementations: isolation, the way back, and agreement with the real ones.

The real ones are looked for in ROME_FAST_PEER_KMENG01, ROME_FAST_PEER_EASYEDIT and
ROME_FAST_PEER_FASTEDIT, each the folder of a checkout; tests that need one skip without it.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers import CONTEXTS, REQUEST, same_bits, state
from stand_in import write_checkout
from tiny import tiny_second_moment

import rome_fast
from rome_fast.bench.case import Case
from rome_fast.bench.peers import load_peer
from rome_fast.errors import InvalidArgumentError, TokenizerMismatchError
from rome_fast.model.spec import ModelSpec
from rome_fast.types import EditRequest

SOURCES = {"kmeng01": "kmeng01/rome", "easyedit": "zjunlp/EasyEdit", "fastedit": "FastEdit"}


@pytest.fixture
def stand_in(tmp_path):
    return write_checkout(tmp_path)


@pytest.fixture(params=SOURCES)
def peer(request):
    """Each of the real ones that is here."""
    return real(request.param)


def real(name):
    variable = f"ROME_FAST_PEER_{name.upper()}"
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set to a checkout of {SOURCES[name]}")
    return load_peer(f"{name}={os.environ[variable]}")


def edit(peer, model, tok, hparams, second_moment=None, contexts=CONTEXTS, **changes):
    request = EditRequest.parse({**REQUEST, **changes})
    return peer.edit(Case(model, tok, request, hparams, contexts, second_moment))


def cosine(a, b):
    return float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def peer_modules():
    tops = {"rome", "util", "easyeditor", "fastedit"}
    return sorted(name for name in sys.modules if name.partition(".")[0] in tops)


# --------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rome=x", "'rome' is unknown.*kmeng01=PATH, easyedit=PATH, fastedit=PATH"),
        ("", "'' is unknown"),
        ("kmeng01", "lacks the folder.*kmeng01=PATH"),
        ("easyedit=", "lacks the folder.*easyedit=PATH"),
        ("kmeng01=/nowhere", "'/nowhere' is no checkout of kmeng01/rome, it lacks rome/rome_main"),
        ("easyedit=/nowhere", "git clone https://github.com/zjunlp/EasyEdit PATH"),
        ("fastedit=/nowhere", "no checkout of hiyouga/FastEdit"),
    ],
)
def test_what_is_no_peer_is_named(spec, message):
    with pytest.raises(InvalidArgumentError, match=message):
        load_peer(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "it is not installed: pip install --no-deps pyfastedit"),
        (SimpleNamespace(submodule_search_locations=["/x/fastedit"]), "package in '/x' is another"),
    ],
)
def test_fastedit_without_a_folder_is_the_installed_one(monkeypatch, spec, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(InvalidArgumentError, match=message):
        load_peer("fastedit")


def test_a_dependency_that_is_missing_is_named(stand_in):
    (stand_in / "util/nethook.py").write_text("import not_installed.part")
    with pytest.raises(InvalidArgumentError, match="pip install not_installed "):
        load_peer(f"kmeng01={stand_in}")
    assert not peer_modules()


def test_a_peer_leaves_no_trace_and_takes_no_name(stand_in, monkeypatch):
    mine = ModuleType("util")
    monkeypatch.setitem(sys.modules, "util", mine)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path, styles = list(sys.path), sys.modules.get("matplotlib.style")
    peer = load_peer(f"kmeng01={stand_in}")
    assert peer.commit == "unknown commit"
    assert sys.modules["util"] is mine and peer_modules() == ["util"]
    assert sys.modules.get("matplotlib.style") is styles
    assert sys.path == path and not sys.dont_write_bytecode
    assert not list(stand_in.rglob("__pycache__"))


def test_the_commit_says_whether_the_peer_was_changed(stand_in):
    def git(*args):
        identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", "-C", stand_in, *identity, *args], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    clean = load_peer(f"kmeng01={stand_in}").commit
    assert len(clean) == 12
    with (stand_in / "rome/rome_main.py").open("a") as file:
        file.write("# changed")
    assert load_peer(f"kmeng01={stand_in}").commit == f"{clean}-dirty"
    # A folder that lies in somebody's checkout is not a checkout itself.
    inner = write_checkout(stand_in / "util")
    assert load_peer(f"kmeng01={inner}").commit == "unknown commit"


# ---------------------------------------------------------------------------- one edit, taken back


def test_an_edit_is_what_the_peer_computed_and_is_taken_back(stand_in, gpt2, hparams):
    model, tok = gpt2
    model.train()
    before, pad = state(model), tok.pad_token
    # So are generic tokenizers of transformers 4; GPT-2 would add an embedding of the zeros.
    tok.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    C = tiny_second_moment(256).float()
    peer = load_peer(f"kmeng01={stand_in}")
    edit(peer, model, tok, hparams, tiny_second_moment(256, seed=1))
    with torch.no_grad():
        theirs = edit(peer, model, tok, hparams, C)
    u, v = torch.inverse(C) @ torch.full((256,), 2.0), torch.full((64,), 64.0 * len(CONTEXTS))
    torch.testing.assert_close(theirs.dense, torch.outer(u, v))
    assert theirs.losses == pytest.approx((1.25, float("nan")), nan_ok=True)
    assert set(theirs.seconds) == {"key", "value", "update", "total"}
    assert sum(theirs.seconds.values()) == pytest.approx(2 * theirs.seconds["total"])
    assert same_bits(model, before) and tok.pad_token == pad
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_a_peer_that_fails_leaves_the_weights(stand_in, gpt2, hparams):
    model, tok = gpt2
    before, peer = state(model), load_peer(f"kmeng01={stand_in}")
    with pytest.raises(ArithmeticError, match="after the write"):
        edit(peer, model, tok, hparams, subject="Nobody")
    assert same_bits(model, before)
    # What was exchanged for the edit is the peer's own again.
    assert peer._main.CONTEXT_TEMPLATES_CACHE is None and peer._compute_v.torch is torch


def test_kmeng01_with_a_tokenizer_that_adds_a_bos_is_refused(stand_in, _pristine, hparams):
    with pytest.raises(TokenizerMismatchError, match="counts the BOS"):
        edit(load_peer(f"kmeng01={stand_in}"), *_pristine["llama"], hparams)


def test_kmeng01_with_a_slow_tokenizer_is_refused(stand_in, gpt2, hparams):
    with pytest.raises(TokenizerMismatchError, match="fast tokenizer, got SimpleNamespace"):
        edit(load_peer(f"kmeng01={stand_in}"), gpt2[0], SimpleNamespace(is_fast=False), hparams)


# --------------------------------------------------------------------------------- the real ones


@pytest.mark.parametrize(("name", "family"), [
    ("kmeng01", "gpt2"), ("easyedit", "gpt2"), ("easyedit", "llama"),
])  # fmt: skip
@pytest.mark.parametrize("with_moment", [True, False])
def test_updates_agree_with_the_real_one(name, family, with_moment, hparams, _pristine):
    peer, (model, tok) = real(name), copy.deepcopy(_pristine[family])
    tok.padding_side = "left"
    C = tiny_second_moment(ModelSpec.of(model).down_projection(1).d_key) if with_moment else None
    moment = "identity" if C is None else rome_fast.SecondMoment.from_moment(C, 10_000)
    before = state(model)
    theirs = edit(peer, model, tok, hparams, C)
    assert same_bits(model, before)
    settings = {"second_moment": moment, "context_templates": CONTEXTS}
    with rome_fast.trial(model, tok, REQUEST, hparams, variant="original", **settings) as ours:
        assert cosine(ours.update.dense(), theirs.dense) >= 0.9999
    assert theirs.dense.norm() == pytest.approx(ours.update_norm, rel=1e-3)
    assert theirs.losses == pytest.approx(ours.losses, abs=1e-3)


@pytest.mark.parametrize("name", ["kmeng01", "easyedit"])
def test_updates_agree_on_the_embedded_model(name):
    peer, (model, tok, _) = real(name), rome_fast.demo.load()
    hparams = rome_fast.RomeHparams.for_model(model)
    request = {"prompt": "{} plays the", "subject": "Ray Charles", "target_new": "violin"}
    moment = rome_fast.collect_second_moment(
        model, tok, ["The weather was fine, and the music of the town was loud."] * 50,
        layers=[hparams.layer], progress=False,
    )[hparams.layer].moment()  # fmt: skip
    C = moment + 0.05 * moment.diagonal().mean() * torch.eye(len(moment))
    theirs = edit(peer, model, tok, hparams, C, **request)
    moment = rome_fast.SecondMoment.from_moment(C, 10_000)
    settings = {"second_moment": moment, "context_templates": CONTEXTS}
    with rome_fast.trial(model, tok, request, hparams, variant="original", **settings) as ours:
        assert cosine(ours.update.dense(), theirs.dense) >= 0.999
    # Both stop below a loss of 0.05, and in the same step.
    assert len(theirs.losses) == len(ours.losses) < hparams.v_num_grad_steps


def test_fastedit_comes_close_on_rotary_positions(hparams, _pristine):
    model, tok = _pristine["llama"]
    theirs = edit(real("fastedit"), model, tok, hparams, tiny_second_moment(176))
    settings = {"second_moment": "identity", "context_templates": CONTEXTS}
    with rome_fast.trial(model, tok, REQUEST, hparams, variant="original", **settings) as ours:
        # Its second KL prompt and its own weight decay keep it from coming closer.
        assert cosine(ours.update.dense(), theirs.dense) >= 0.99
    assert theirs.losses[-1] < 0.2 * theirs.losses[0]


def test_a_real_peer_that_fails_leaves_the_weights(peer, gpt2, hparams, monkeypatch):
    model, tok = gpt2
    before = state(model)

    def fail(*args):
        raise ArithmeticError("inside")

    # The last thing before a weight is written for good; it was written and restored before.
    shapes = iter([lambda matrix, shape: matrix, fail])
    monkeypatch.setattr(peer._main, "upd_matrix_match_shape", lambda *args: next(shapes)(*args))
    with pytest.raises(ArithmeticError, match="inside"):
        edit(peer, model, tok, hparams)
    assert same_bits(model, before)
    assert not any(module._forward_hooks for module in model.modules())
    assert not peer_modules()
