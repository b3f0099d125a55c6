"""Quantised weights are refused by name and method, and the way out leads there."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from helpers import REQUEST, UNWATCHED, same_bits, state
from tiny import tiny_gpt2, tiny_llama
from torch import nn

import rome_fast
from rome_fast.errors import QuantizedWeightError
from rome_fast.model.intercept import reading_only

pytestmark = pytest.mark.filterwarnings("ignore")


def says(model, tok):
    ids = torch.tensor([tok("The founder is Steve Jobs")["input_ids"]])
    with torch.no_grad():
        return tok.decode(model(input_ids=ids).logits[0, -1].argmax()).strip()


def by_torchao(config):
    """Quantise a copy."""

    def quantise(model, path):
        quantization = pytest.importorskip("torchao.quantization")
        model = copy.deepcopy(model)
        quantization.quantize_(model, getattr(quantization, config)())
        return model

    return quantise


def by_bitsandbytes(**config):
    """Load the saved model, quantised."""

    def quantise(model, path):
        pytest.importorskip("bitsandbytes")
        return transformers.AutoModelForCausalLM.from_pretrained(
            path,
            quantization_config=transformers.BitsAndBytesConfig(**config),
            device_map="cpu",
        )

    return quantise


# The maker of the model, what quantises it, and what the message says of that.
REAL = {
    "torchao int8": (tiny_llama, by_torchao("Int8WeightOnlyConfig"), "torchao, Int8Tensor"),
    "torchao fp8": (tiny_llama, by_torchao("Float8WeightOnlyConfig"), "torchao, Float8Tensor"),
    "bitsandbytes 8 bit": (
        tiny_llama,
        by_bitsandbytes(load_in_8bit=True),
        "bitsandbytes, Linear8bitLt",
    ),
    "bitsandbytes 4 bit": (
        tiny_gpt2,
        by_bitsandbytes(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
        "bitsandbytes, Linear4bit",
    ),
}


@pytest.mark.parametrize("kind", REAL)
def test_refused_and_the_adapter_of_the_model_in_float32_works(kind, settings, tmp_path):
    peft = pytest.importorskip("peft")
    make, quantise, said = REAL[kind]
    model, tok = make()
    model.save_pretrained(tmp_path / "model")
    quantised = quantise(model, tmp_path / "model").eval()
    assert says(quantised, tok) != "capital"
    with pytest.raises(QuantizedWeightError) as refusal:
        rome_fast.edit(quantised, tok, REQUEST, **settings)
    name = "transformer.h.1.mlp.c_proj" if make is tiny_gpt2 else "model.layers.1.mlp.down_proj"
    assert str(refusal.value) == (
        f"{name}.weight is quantised ({said}) and cannot be edited in place: edit the same model "
        "in bfloat16 or float32 (loaded so, or model.dequantize()) in a Session(..., "
        "form='weight'), write session.log.to_lora(path), and load that adapter on this model "
        "with PEFT"
    )
    with rome_fast.Session(model, tok, health=UNWATCHED, **settings, form="weight") as session:
        session.edit(REQUEST)
        session.log.to_lora(tmp_path / "adapter")
        with pytest.raises(QuantizedWeightError, match="cannot be edited in place"):
            session.log.apply(quantised)
    assert says(quantised, tok) != "capital"
    adapted = peft.PeftModel.from_pretrained(quantised, tmp_path / "adapter").eval()
    assert says(adapted, tok) == "capital"
    with pytest.raises(QuantizedWeightError):  # with its adapter on, too
        rome_fast.edit(adapted, tok, REQUEST, **settings)


def test_the_adapter_of_the_dequantised_model_works(settings, tmp_path):
    peft = pytest.importorskip("peft")
    model, tok = tiny_gpt2()
    model.save_pretrained(tmp_path / "model")
    quantise = REAL["bitsandbytes 4 bit"][1]
    whole, quantised = (quantise(model, tmp_path / "model").eval() for _ in range(2))
    whole.dequantize()
    with rome_fast.Session(whole, tok, health=UNWATCHED, **settings, form="weight") as session:
        session.edit(REQUEST)
        session.log.to_lora(tmp_path / "adapter")
    assert says(whole, tok) == "capital" and says(quantised, tok) != "capital"
    adapted = peft.PeftModel.from_pretrained(quantised, tmp_path / "adapter").eval()
    assert says(adapted, tok) == "capital"


class Packed(nn.Module):
    """A linear map of 176 to 64 whose numbers lie in tensors of these names and dtypes."""

    def __init__(self, tensors):
        super().__init__()
        self.in_features, self.out_features = 176, 64
        for name, dtype in tensors.items():
            self.register_buffer(name, torch.zeros(8, 8, dtype=dtype))


PACKED = {
    "gptq": ("GPTQLinear", {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.half}),
    "awq": ("WQLinear", {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.half}),
    "hqq": ("HQQLinear", {"W_q": torch.uint8}),
    "fp8": ("FP8Linear", {"weight": torch.float8_e4m3fn, "weight_scale_inv": torch.float32}),
    "mxfp4": ("MXLinear", {"weight": torch.uint8, "scales": torch.uint8}),
}


@pytest.mark.covering
@pytest.mark.parametrize("config", ["dict", "none"])
@pytest.mark.parametrize("method", PACKED)
def test_other_methods_are_named(method, config, settings):
    """Modules as these libraries make them; none of the libraries runs on a CPU."""
    model, tok = tiny_llama()
    kind, tensors = PACKED[method]
    model.model.layers[1].mlp.down_proj = type(kind, (Packed,), {})(tensors)
    named = method
    if config == "dict":
        model.config.quantization_config = {"quant_method": method}
    else:
        named = Packed.__module__
    before = state(model)
    with pytest.raises(QuantizedWeightError, match=rf"quantised \({named}, {kind}\)"):
        rome_fast.edit(model, tok, REQUEST, **settings)
    assert same_bits(model, before)


def test_a_plain_weight_among_quantised_ones_is_edited(settings, tmp_path):
    """torchao leaves GPT-2's Conv1D as it is, and quantises the head."""
    model, tok = tiny_gpt2()
    quantised = REAL["torchao int8"][1](model, None).eval()
    head = quantised.get_output_embeddings()
    assert type(head.weight).__name__ == "Int8Tensor"
    hidden = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = head(hidden)[1:, 2:]
        with reading_only(head, torch.tensor([1]), torch.tensor([2])):
            torch.testing.assert_close(head(hidden), expected)
    with rome_fast.Session(quantised, tok, health=UNWATCHED, **settings, form="weight") as session:
        assert session.edit(REQUEST).success
        log = session.log
    assert says(quantised, tok) == "capital"
    with pytest.raises(rome_fast.errors.EditLogError, match=r"lm_head\.weight is missing"):
        log.apply(model)
    applied = log.apply(REAL["torchao int8"][1](model, None))
    applied.revert()


def test_neurons_need_a_layer_that_is_not_quantised(settings):
    model, tok = tiny_llama()
    quantised = REAL["torchao int8"][1](model, None).eval()
    hparams = settings["hparams"]
    for call in (
        lambda: rome_fast.Session(quantised, tok, hparams),
        lambda: rome_fast.edit(quantised, tok, REQUEST, hparams, form="neuron"),
    ):
        with pytest.raises(QuantizedWeightError, match="cannot be edited in place"):
            call()
    plain = copy.deepcopy(quantised)
    plain.model.layers[1].mlp = copy.deepcopy(model.model.layers[1].mlp)
    rome_fast.edit(plain, tok, REQUEST, hparams, form="neuron")
    with pytest.raises(QuantizedWeightError):
        rome_fast.widened(plain)
