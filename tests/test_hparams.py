"""Files of both peers are read unchanged; presets and derived defaults fit their models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from rome_fast import RomeHparams
from rome_fast.errors import EditWarning, HparamsError, InvalidArgumentError
from rome_fast.hparams import defaults_for
from rome_fast.model.spec import ModelSpec

KMENG = {
    "layers": [17],
    "fact_token": "subject_last",
    "v_num_grad_steps": 20,
    "v_lr": 5e-1,
    "v_loss_layer": 47,
    "v_weight_decay": 0.5,
    "clamp_norm_factor": 4,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
    "context_template_length_params": [[5, 10], [10, 10]],
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
    "layer_module_tmp": "transformer.h.{}",
    "mlp_module_tmp": "transformer.h.{}.mlp",
    "attn_module_tmp": "transformer.h.{}.attn",
    "ln_f_module": "transformer.ln_f",
    "lm_head_module": "transformer.wte",
    "mom2_dataset": "wikipedia",
    "mom2_n_samples": 100000,
    "mom2_dtype": "float32",
}

EASYEDIT = """
alg_name: "ROME"
model_name: "./hugging_cache/llama-2-7b"
stats_dir: "./data/stats"
device: 0
layers: [5]
fact_token: "subject_last"
v_num_grad_steps: 25
v_lr: 5e-1
v_loss_layer: 31
v_weight_decay: 1e-3
clamp_norm_factor: 4
kl_factor: 0.0625
mom2_adjustment: false
context_template_length_params: [[5, 10], [10, 10]]
rewrite_module_tmp: "model.layers.{}.mlp.down_proj"
layer_module_tmp: "model.layers.{}"
mlp_module_tmp: "model.layers.{}.mlp"
attn_module_tmp: "model.layers.{}.self_attn"
ln_f_module: "model.norm"
lm_head_module: "lm_head"
mom2_dataset: "wikipedia"
mom2_n_samples: 100000
mom2_dtype: "float32"
model_parallel: false
fp16: false
"""


def test_reads_kmeng_json(tmp_path):
    file = tmp_path / "gpt2-xl.json"
    file.write_text(json.dumps(KMENG))
    hparams = RomeHparams.from_file(file)
    assert hparams == RomeHparams(layers=[17])
    assert isinstance(hparams.clamp_norm_factor, float)


def test_reads_easyedit_yaml(tmp_path):
    file = tmp_path / "llama-7b.yaml"
    file.write_text(EASYEDIT)
    hparams = RomeHparams.from_file(file)
    assert hparams.v_lr == 0.5 and hparams.v_weight_decay == 1e-3
    assert hparams.layers == (5,) and hparams.v_num_grad_steps == 25
    assert hparams.mom2_adjustment is False
    assert hparams.variant == RomeHparams(layers=[5]).variant


@pytest.mark.parametrize(
    ("prompt_keys", "variant"), [("false", "mean_key"), ("true", "prompt_key")]
)
def test_r_rome_files_choose_their_variant(tmp_path, prompt_keys, variant):
    file = tmp_path / "r-rome.yaml"
    file.write_text(EASYEDIT.replace('"ROME"', '"R-ROME"') + f"enable_prompt_keys: {prompt_keys}\n")
    assert RomeHparams.from_file(file).variant == variant


def test_unknown_key_lists_the_known_ones(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(EASYEDIT + "v_learning_rate: 0.5\n")
    with pytest.raises(HparamsError, match=r"unknown key 'v_learning_rate'; known: .*v_lr"):
        RomeHparams.from_file(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1, 2", "neither JSON nor YAML"), ("- 1", "must hold a mapping"), ("v_lr: 1", "lacks")],
)
def test_broken_files(tmp_path, content, message):
    file = tmp_path / "x.yaml"
    file.write_text(content)
    with pytest.raises(HparamsError, match=message):
        RomeHparams.from_file(file)
    with pytest.raises(HparamsError, match="there is no file"):
        RomeHparams.from_file(tmp_path / "absent.json")


def test_json_with_tabs_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "hparams.json"
    path.write_text(json.dumps(KMENG, indent="\t"), encoding="utf-8-sig")
    assert RomeHparams.from_file(path).layers == (17,)


def test_a_file_of_another_encoding_is_named(tmp_path):
    path = tmp_path / "hparams.yaml"
    path.write_text(EASYEDIT, encoding="utf-16")
    with pytest.raises(HparamsError, match="is UTF-16: save it as UTF-8"):
        RomeHparams.from_file(path)


@pytest.mark.parametrize(
    ("model_type", "n_layers", "width", "layer", "steps"),
    [
        ("gpt2", 12, 768, 9, 23),
        ("gpt2", 24, 1024, 8, 20),
        ("gpt2", 36, 1280, 12, 20),
        ("gpt2", 48, 1600, 17, 20),
        ("gptj", 28, 4096, 5, 20),
        ("gpt_neox", 44, 6144, 15, 20),
        ("llama", 32, 4096, 5, 25),
        ("llama", 30, 576, 4, 25),
        ("mistral", 32, 4096, 5, 25),
        ("qwen2", 28, 3584, 5, 25),
    ],
)
def test_presets(model_type, n_layers, width, layer, steps):
    config = transformers.AutoConfig.for_model(
        model_type, num_hidden_layers=n_layers, hidden_size=width, num_attention_heads=8
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    hparams = RomeHparams.for_model(model)
    assert hparams.layer == layer and hparams.v_num_grad_steps == steps


def test_a_small_llama_of_32_layers_is_not_taken_for_one_of_7b():
    config = transformers.LlamaConfig(
        num_hidden_layers=32, hidden_size=64, intermediate_size=128, num_attention_heads=4,
        vocab_size=64,
    )  # fmt: skip
    with pytest.warns(EditWarning, match="derived layer 4,"):
        RomeHparams.for_model(transformers.LlamaForCausalLM(config))


def test_those_of_a_form_are_what_an_edit_of_that_form_takes(gpt2):
    model, spec = gpt2[0], ModelSpec.of(gpt2[0])
    for form in ("weight", "neuron", "gate"):
        with pytest.warns(EditWarning):
            assert RomeHparams.for_model(model, form=form) == defaults_for(spec, form=form)[0]
    with pytest.raises(InvalidArgumentError, match="form must be one of"):
        RomeHparams.for_model(model, form="lora")


def test_the_preset_of_a_multimodal_model_is_its_text_decoders():
    text = transformers.LlamaConfig(num_hidden_layers=32, hidden_size=4096)
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(text_config=text)
        )
    assert RomeHparams.for_model(model).layer == 5


def test_derived_defaults_warn_and_follow_the_values(gpt2):
    model, _ = gpt2
    with pytest.warns(EditWarning, match=r"no preset for GPT2LMHeadModel with 4 layers"):
        small = RomeHparams.for_model(model)
    for block in model.transformer.h:
        block.mlp.c_proj.weight.data.mul_(100)
        block.mlp.c_proj.bias.data.mul_(100)
    with pytest.warns(EditWarning):
        large = RomeHparams.for_model(model)
    assert 0 <= small.layer < 4
    assert small.v_weight_decay < large.v_weight_decay <= 0.5
    assert small.v_lr < large.v_lr <= 0.5


def test_where_nobody_says_how_the_search_is_the_measured_one_but_for_the_original(gpt2):
    spec = ModelSpec.of(gpt2[0])
    chosen = ("solver", "v_stop_loss", "context_template_length_params", "compute_dtype")

    def of(hparams):
        return [getattr(hparams, name) for name in chosen]

    variants = (None, "both_keys", "original")
    asked = {variant: of(defaults_for(spec, variant=variant)[0]) for variant in variants}
    assert asked[None] == asked["both_keys"] == ["lbfgs", 0.1, None, "auto"]
    assert asked["original"] == of(RomeHparams([1]))
    assert asked["original"] == ["adam", 0.05, ((5, 10), (10, 10)), "model"]
    beside = of(defaults_for(spec, form="neuron")[0])
    assert beside == ["adam", 0.05, ((5, 3), (10, 2)), "auto"]


def test_replace_checks_and_copies():
    hparams = RomeHparams(layers=[1])
    assert hparams.replace(v_lr=0.1).v_lr == 0.1 and hparams.v_lr == 0.5
    with pytest.raises(HparamsError, match="v_lr"):
        hparams.replace(v_lr=-1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kmeng01/gpt2-xl", {"layers": (17,), "v_num_grad_steps": 20, "v_weight_decay": 0.5}),
        ("kmeng01/GPT2-medium.json", {"layers": (8,), "clamp_norm_factor": 3.0}),
        ("easyedit/llama-7b", {"layers": (5,), "v_weight_decay": 0.001, "mom2_adjustment": False}),
        (Path("easyedit") / "gpt2-xl.yaml", {"layers": (17,), "v_num_grad_steps": 20}),
    ],
)
def test_published_settings_by_name(name, expected):
    hparams = RomeHparams.from_file(name)
    assert {key: getattr(hparams, key) for key in expected} == expected
    assert hparams.context_template_length_params == ((5, 10), (10, 10))


def test_a_file_comes_before_a_name_and_other_names_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HparamsError, match="no 'kmeng01/gpt3'; known: kmeng01/gpt2-medium, kmeng"):
        RomeHparams.from_file("kmeng01/gpt3")
    with pytest.raises(HparamsError, match="there is no file 'other/gpt2-xl'"):
        RomeHparams.from_file("other/gpt2-xl")
    (tmp_path / "kmeng01").mkdir()
    (tmp_path / "kmeng01" / "gpt2-xl").write_text("layers: [3]")
    assert RomeHparams.from_file("kmeng01/gpt2-xl").layers == (3,)
