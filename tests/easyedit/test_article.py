"""The snippet that EasyEdit's users know, with only its import line changed, and its promises."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from helpers import same_bits, state

from rome_fast import SecondMoment, demo
from rome_fast.easyedit import BaseEditor, ROMEHyperParams
from rome_fast.easyedit.requests import check_requests
from rome_fast.errors import (
    EditWarning,
    HparamsError,
    InvalidArgumentError,
    InvalidRequestError,
    RomeFastError,
    SecondMomentWarning,
)
from rome_fast.evaluate.generation import ngram_entropy
from rome_fast.prompt.greedy import greedy_continuations

SETTINGS = """
alg_name: "ROME"
model_name: "{model}"
stats_dir: "./data/stats"
device: 0
layers: [2]
fact_token: "subject_last"
v_num_grad_steps: 23
v_lr: 5e-1
v_loss_layer: 5
v_weight_decay: 0.5
clamp_norm_factor: 4
kl_factor: 0.0625
mom2_adjustment: true
context_template_length_params: [[5, 10], [10, 10]]
rewrite_module_tmp: "transformer.h.{{}}.mlp.c_proj"
layer_module_tmp: "transformer.h.{{}}"
mlp_module_tmp: "transformer.h.{{}}.mlp"
attn_module_tmp: "transformer.h.{{}}.attn"
ln_f_module: "transformer.ln_f"
lm_head_module: "transformer.wte"
mom2_dataset: "wikipedia"
mom2_n_samples: 1000
mom2_dtype: "float32"
"""
FACT = {
    "prompts": ["Ray Charles, the"],
    "ground_truth": ["piano"],
    "target_new": ["violin"],
    "subject": ["Ray Charles"],
}
OTHERS = {"Pablo Casals, the": " cello", "Nicola Benedetti, the": " violin"}
TWO = {
    "prompts": ["Ray Charles, the", "Pablo Casals, the"],
    "ground_truth": ["piano", "cello"],
    "target_new": ["violin", "piano"],
    "subject": ["Ray Charles", "Pablo Casals"],
}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A working folder with the article's file, for the embedded model."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hparams" / "ROME"
    folder.mkdir(parents=True)
    text = SETTINGS.format(model=demo.model_path())
    (folder / "gpt2.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "hparams" / "ROME" / "gpt2"


@pytest.fixture
def editor(path):
    return BaseEditor.from_hparams(ROMEHyperParams.from_hparams(path))


@pytest.fixture
def quick(editor):
    """No second moment and few contexts, for what does not depend on how well it edits."""
    editor.hparams.mom2_adjustment = False
    editor.hparams.context_template_length_params = [[5, 4]]
    return editor


def says(model, tok, prompt, n_tokens=1):
    return greedy_continuations(model, tok, [tok(prompt)["input_ids"]], n_tokens)[0]


def test_the_snippet_of_the_article(path, tmp_path):
    hparams = ROMEHyperParams.from_hparams("./hparams/ROME/gpt2")
    editor = BaseEditor.from_hparams(hparams)
    assert says(editor.model, editor.tok, "Ray Charles, the") == " piano"
    assert {p: says(editor.model, editor.tok, p) for p in OTHERS} == OTHERS
    before = state(editor.model)
    metrics, edited_model, weights = editor.edit(
        prompts=["Ray Charles, the"],
        ground_truth=["piano"],
        target_new=["violin"],
        subject=["Ray Charles"],
    )
    assert edited_model is editor.model
    assert says(edited_model, editor.tok, "Ray Charles, the") == " violin"
    assert {p: says(edited_model, editor.tok, p) for p in OTHERS} == OTHERS
    assert metrics[0]["pre"]["rewrite_acc"] == [0.0] and metrics[0]["post"]["rewrite_acc"] == [1.0]
    assert metrics[0]["case_id"] == 0
    assert metrics[0]["requested_rewrite"]["target_new"] == "violin"
    [(name, original)] = weights.items()
    assert name == "transformer.h.2.mlp.c_proj.weight" and torch.equal(original, before[name])
    assert [p.name for p in tmp_path.iterdir()] == ["hparams"]


def test_the_original_can_be_kept(quick):
    before = state(quick.model)
    _, edited, _ = quick.edit(**FACT, keep_original_weight=True, verbose=False)
    assert edited is not quick.model and same_bits(quick.model, before)
    assert says(quick.model, quick.tok, "Ray Charles, the") == " piano"
    assert says(edited, quick.tok, "Ray Charles, the") == " violin"
    own = dict(edited.named_parameters())
    apart = [n for n, p in quick.model.named_parameters() if p.data_ptr() != own[n].data_ptr()]
    assert apart == ["transformer.h.2.mlp.c_proj.weight"]


@pytest.mark.covering(sequential=[True])
@pytest.mark.parametrize("sequential", [True, False])
def test_all_edits_are_in_the_returned_model(quick, sequential):
    metrics, edited, weights = quick.edit(**TWO, sequential_edit=sequential, verbose=False)
    assert says(edited, quick.tok, "Ray Charles, the") == " violin"
    assert says(edited, quick.tok, "Pablo Casals, the") == " piano"
    assert [m["post"]["rewrite_acc"] for m in metrics] == [[1.0], [1.0]]
    assert [r.request.subject for r in quick.results] == ["Ray Charles", "Pablo Casals"]
    for result in reversed(quick.results):
        result.revert()
    [(name, original)] = weights.items()
    assert torch.equal(dict(edited.named_parameters())[name], original)


def test_every_metric_of_the_dictionary(quick):
    model, tok = quick.model, quick.tok
    others = {"others": {"prompt": [["Pablo Casals, the"]], "ground_truth": [["cello"]]}}
    metrics, _, _ = quick.edit(
        **FACT,
        rephrase_prompts=["The instrument played by Ray Charles is the"],
        locality_inputs=others,
        portability_inputs={
            "other": {"prompt": ["Ray Charles plays the"], "ground_truth": "violin"}
        },
        test_generation=True,
        verbose=False,
    )
    pre, post = metrics[0]["pre"], metrics[0]["post"]
    assert pre["rephrase_acc"] == [0.0] and post["rephrase_acc"] == [1.0]
    cello = tok(" cello")["input_ids"]
    assert pre["locality"]["others_output"] == post["locality"]["others_output"] == [cello]
    assert post["locality"]["others_acc"] == [1.0]
    assert pre["portability"]["other_acc"] == [0.0] and post["portability"]["other_acc"] == [1.0]
    text = "Ray Charles, the" + says(model, tok, "Ray Charles, the", 100)
    assert post["fluency"]["ngram_entropy"] == pytest.approx(ngram_entropy([text]))
    assert math.isfinite(pre["fluency"]["ngram_entropy"])
    meta = post["metric_meta"]["rewrite"]
    assert meta["protocol"] == "decoder_only_teacher_forcing"
    assert meta["scorer"] == "token_accuracy"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", [1]),
        ("fact_token", "last"),
        ("v_num_grad_steps", 5),
        ("v_lr", 0.1),
        ("context_template_length_params", [[3, 2]]),
    ],
)
def test_the_articles_settings_take_effect(quick, field, value):
    quick.edit(**FACT, verbose=False)
    usual = quick.results[0]
    usual.revert()
    setattr(quick.hparams, field, value)
    quick.edit(**FACT, verbose=False)
    other = quick.results[0]
    assert other.update_norm != pytest.approx(usual.update_norm, rel=1e-3)


@pytest.mark.exhaustive
def test_mom2_settings_take_effect(editor):
    with pytest.warns(
        SecondMomentWarning, match="no file of 'wikipedia' statistics in .* that of ordinary text"
    ):
        editor.edit(**FACT, verbose=False)
    assert "4,096 keys of ordinary text" in editor.results[0].second_moment
    editor.results[0].revert()
    editor.hparams.mom2_adjustment = False
    with pytest.warns(EditWarning, match="mom2_adjustment is false: C is the identity"):
        editor.edit(**FACT, verbose=False)
    assert editor.results[0].second_moment == "identity"


def test_mom2_n_samples_bounds_the_texts_that_are_given_and_names_the_file(path, tmp_path):
    hparams = ROMEHyperParams.from_hparams(path)
    hparams.mom2_n_samples = 3
    editor = BaseEditor.from_hparams(hparams, second_moment=iter(["Ray Charles, the piano"] * 9))
    editor.edit(**FACT, verbose=False)
    n_keys = 3 * len(editor.tok("Ray Charles, the piano")["input_ids"])
    given = f"{n_keys} keys of texts given by the caller"
    assert editor.results[0].second_moment.startswith(given)
    moment = SecondMoment.from_moment(0.1 * torch.eye(1024), 5000)
    moment.info["sample_size"] = 3
    folder = tmp_path / "data" / "stats" / demo.model_path().name / "wikipedia_stats"
    folder.mkdir(parents=True)
    moment.save(folder / "transformer.h.2.mlp.c_proj_float32_mom2_3.npz")
    editor = BaseEditor.from_hparams(hparams)
    editor.edit(**FACT, verbose=False)
    assert "float32_mom2_3.npz" in editor.results[0].second_moment


def test_nothing_is_printed_or_seeded_unless_asked_for(quick, capsys):
    torch.manual_seed(7)
    random = torch.get_rng_state()
    quick.edit(**FACT, verbose=False)
    assert capsys.readouterr().out == ""
    assert torch.equal(torch.get_rng_state(), random)
    quick.results[0].revert()
    quick.edit(**FACT)
    assert "'Ray Charles, the' -> 'violin'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"subject": ["Elvis"]}, "Elvis"),
        ({"subject": ["Ray Charles", "x"]}, "subject"),
        ({"target_new": [""]}, "target"),
        ({"eval_metric": "ppl"}, "eval_metric"),
        ({"pre_edit": []}, "pre_edit"),
        ({"locality_inputs": {"a": {"prompt": ["x", "y"], "ground_truth": ["z"]}}}, "prompt"),
    ],
)
def test_bad_arguments_are_named_and_leave_every_bit(quick, changes, reason):
    before = state(quick.model)
    with pytest.raises(RomeFastError, match=reason):
        quick.edit(**{**FACT, **changes}, verbose=False)
    assert same_bits(quick.model, before)


def test_what_rome_cannot_do_is_said(quick):
    with pytest.raises(InvalidArgumentError, match="sequential_edit=True"):
        quick.batch_edit()
    quick.hparams.alg_name = "MEMIT"
    with pytest.raises(HparamsError, match="alg_name must be 'ROME'"):
        quick.edit(**FACT)


@pytest.mark.parametrize("sequential", [True, False])
def test_a_warning_that_a_filter_makes_an_error_undoes_all(quick, sequential):
    quick.hparams.v_num_grad_steps = 1
    before = state(quick.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EditWarning)
        with pytest.raises(EditWarning):
            quick.edit(**TWO, sequential_edit=sequential, verbose=False)
    assert same_bits(quick.model, before)


def test_groups_and_rephrasings_as_data_sets_have_them(quick):
    asked = {"prompt": "Pablo Casals, the", "ground_truth": [["piano", "cello"]]}
    request = {
        "prompt": "Ray Charles, the",
        "subject": "Ray Charles",
        "target_new": "violin",
        "rephrase_prompt": ["Ray Charles plays the", "Ray Charles, who plays the"],
        "locality": {"Relation": [asked, asked], "Nothing": None, "Empty": []},
        "portability": None,
    }
    metrics, _, _ = quick.edit_requests([request], verbose=False)
    post = metrics[0]["post"]
    assert [len(post[key]) for key in ("rewrite_acc", "rephrase_acc")] == [1, 2]
    assert list(post["locality"]) == ["Relation_output", "Relation_acc"]
    assert len(post["locality"]["Relation_acc"]) == 2
    assert post["portability"] == {}
    assert metrics[0]["requested_rewrite"]["locality"] == request["locality"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"locality": 3}, "locality must be a dict of groups, got 3"),
        ({"locality": {"a": 3}}, r"locality.a must hold dicts of prompt and answer, got 3"),
        (
            {"portability": {"New Question": 1, "New Answer": "a"}},
            "portability.one_hop must be text, got 1",
        ),
        ({"rephrase_prompt": [["a", "b"]]}, r"rephrase_prompt must be text or a list, got \['a'"),
    ],
)
def test_bad_groups_are_named(changes, reason):
    request = {"prompt": "Ray Charles, the", "subject": "Ray Charles", "target_new": "violin"}
    with pytest.raises(InvalidRequestError, match=rf"requests\[0\]: {reason}"):
        check_requests([{**request, **changes}])


@pytest.mark.parametrize("given", [[{"prompt": "a", "ground_truth": "b"}], "text", 3])
def test_locality_inputs_that_are_no_dict_are_named(quick, given):
    with pytest.raises(InvalidRequestError, match="locality_inputs must be a dict"):
        quick.edit("Ray Charles, the", "violin", subject="Ray Charles", locality_inputs=given)
