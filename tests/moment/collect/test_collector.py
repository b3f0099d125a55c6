"""collect_second_moment against documents fed one by one, and its every option."""

from __future__ import annotations

import io

import pytest
import torch
from helpers import REQUEST
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import rome_fast
from rome_fast.errors import HparamsError, InvalidArgumentError, NonFiniteError, SecondMomentError
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.collection import ENOUGH_KEYS
from rome_fast.moment.collect.collector import collect_second_moment
from rome_fast.prompt.ids import all_text_ids


def collected(model, tok, texts, layers=1, **options):
    return collect_second_moment(model, tok, texts, layers, progress=False, **options)


def mean(keys):
    return keys.T @ keys / len(keys)


@pytest.mark.covering
@pytest.mark.parametrize("length", [8, 16, 1024])
def test_every_token_of_every_layer_is_seen_once(tiny, texts, oracle, length):
    model, tok = tiny
    moments = collected(
        model, tok, texts, [2, 0], tokens=10**6, max_length=length, dtype=torch.float64
    )
    assert list(moments) == [0, 2]
    for layer, moment in moments.items():
        keys = oracle(model, tok, layer, texts, min(length, 128))
        assert moment.count == len(keys) == moment.info["tokens"]
        torch.testing.assert_close(moment.moment(), mean(keys), rtol=1e-4, atol=1e-5)
        assert moment.info["documents"] == "separate"
        assert moment.info["module"] == ModelSpec.of(model).down_projection(layer).name


def test_joined_documents_are_one_sequence(tiny, texts, oracle):
    model, tok = tiny
    joined = [i for ids in all_text_ids(tok, texts) for i in ids]
    moment = collected(model, tok, texts, tokens=10**6, documents="joined", max_length=32)[1]
    expected = collected(
        model, tok, [joined[i : i + 32] for i in range(0, len(joined), 32)], tokens=10**6
    )[1]
    torch.testing.assert_close(moment.moment(), expected.moment(), rtol=1e-4, atol=1e-5)
    separate = mean(oracle(model, tok, 1, texts, 32)).float()
    assert not torch.allclose(moment.moment(), separate, rtol=1e-2)


def test_first_tokens_can_be_skipped(tiny, texts, oracle):
    model, tok = tiny
    moment = collected(model, tok, texts, tokens=10**6, first_token="skip", dtype=torch.float64)[1]
    keys = oracle(model, tok, 1, texts, 128)
    firsts, at = set(), 0
    for ids in all_text_ids(tok, texts):
        firsts |= {at, 128 * -(-at // 128)} & set(range(at, at + len(ids)))
        at += len(ids)
    rest = keys[[i for i in range(len(keys)) if i not in firsts]]
    assert moment.count == len(rest) and moment.info["first_token"] == "skip"
    torch.testing.assert_close(moment.moment(), mean(rest), rtol=1e-4, atol=1e-5)


def test_budget_is_kept_to_the_token(gpt2, texts, oracle):
    model, tok = gpt2
    moment = collected(model, tok, texts, tokens=50, max_length=16, dtype=torch.float64)[1]
    keys = oracle(model, tok, 1, texts, 16)[:50]
    assert moment.count == 50
    torch.testing.assert_close(moment.moment(), mean(keys), rtol=1e-4, atol=1e-5)


def test_forward_stops_before_the_last_down_projection(gpt2, texts, monkeypatch):
    model, tok = gpt2

    def never(*args, **kwargs):
        raise AssertionError("computed what no key needs")

    monkeypatch.setattr(model.transformer.h[1].mlp.c_proj, "forward", never)
    monkeypatch.setattr(model.transformer.h[2], "forward", never)
    monkeypatch.setattr(model.lm_head, "forward", never)
    assert set(collected(model, tok, texts, [0, 1], tokens=100)) == {0, 1}
    with pytest.raises(AssertionError, match="no key needs"):
        collected(model, tok, texts, [0, 2], tokens=100)


def test_upper_blocks_may_be_offloaded(gpt2, texts):
    model, tok = gpt2
    expected = collected(model, tok, texts, 1)[1]
    model.transformer.h[2].to("meta")
    assert torch.equal(collected(model, tok, texts, 1)[1].moment(), expected.moment())


@pytest.mark.parametrize("fails_at_layer", [0, 2])
def test_batch_shrinks_when_memory_runs_out(gpt2, texts, monkeypatch, fails_at_layer):
    """The pass that failed is repeated with fewer rows, and adds no layer twice."""
    model, tok = gpt2
    options = {"tokens": 10**6, "max_length": 8, "dtype": torch.float64}
    expected = collected(model, tok, texts, [0, 1, 2], **options)
    sizes = []

    def attention(*args, module=model.transformer.h[fails_at_layer].attn, **kwargs):
        sizes.append(len(args[0]))
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 355.00 GiB")
        return type(module).forward(module, *args, **kwargs)

    monkeypatch.setattr(model.transformer.h[fails_at_layer].attn, "forward", attention)
    moments = collected(model, tok, texts, [0, 1, 2], **options)
    assert max(sizes) > 3 and sizes[-1] <= 3
    for layer, moment in moments.items():
        assert moment.count == expected[layer].count
        torch.testing.assert_close(moment.moment(), expected[layer].moment())


def test_row_that_does_not_fit_is_an_error_with_the_remedy(gpt2, texts, monkeypatch):
    model, tok = gpt2

    def attention(*args, **kwargs):
        if args[0].shape[1] > 20:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return forward(*args, **kwargs)

    forward = model.transformer.h[0].attn.forward
    monkeypatch.setattr(model.transformer.h[0].attn, "forward", attention)
    with pytest.raises(SecondMomentError, match="one row of 128 tokens: lower max_length"):
        collected(model, tok, texts)
    assert collected(model, tok, texts, max_length=16)[1].count


def test_other_errors_are_not_taken_for_lack_of_memory(gpt2, texts, monkeypatch):
    model, tok = gpt2

    def broken(*args, **kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(model.transformer.h[0], "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        collected(model, tok, texts, documents="joined")


def test_model_of_128k_positions_is_collected_in_bounded_memory(tiny):
    """`max_position_embeddings` of 131,072 made other collectors ask for 355 GiB."""
    _, tok = tiny
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=131_072,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    shapes = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    moment = collected(model, tok, [[i % 500 for i in range(300_000)]], 1, tokens=20_000)[1]
    assert moment.count == 20_000
    assert max(shape[1] for shape in shapes) == 1024
    assert max(shape[0] * shape[1] for shape in shapes) <= 1024


def endless():
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(1, 300, (4,), generator=generator)


def test_auto_reads_a_few_keys_for_each_dimension_of_the_widest(llama):
    """Of endless text; and the same tokens for all layers."""
    model, tok = llama
    assert collected(model, tok, endless())[1].count == ENOUGH_KEYS * 176
    mlp = model.model.layers[2].mlp
    mlp.gate_proj, mlp.up_proj = (torch.nn.Linear(64, 200, bias=False) for _ in range(2))
    mlp.down_proj = torch.nn.Linear(200, 64, bias=False)
    moments = collected(model, tok, endless(), [1, 2])
    assert [(m.d_key, m.count) for m in moments.values()] == [(176, 800), (200, 800)]


def test_auto_counts_skipped_tokens_as_read(gpt2):
    """Every row holds whole documents of four tokens: a quarter are first tokens."""
    moment = collected(*gpt2, endless(), first_token="skip")[1]
    assert moment.info["tokens"] == ENOUGH_KEYS * 256 and moment.count == 3 * 256


def test_auto_reads_all_of_texts_that_are_short(gpt2, texts):
    model, tok = gpt2
    n_tokens = sum(map(len, all_text_ids(tok, texts)))
    assert n_tokens < ENOUGH_KEYS * 256
    moment = collected(model, tok, texts)[1]
    assert moment.count == n_tokens
    assert torch.equal(moment.moment(), collected(model, tok, texts, tokens=10**6)[1].moment())


def test_the_bar_has_its_title_and_ends_where_the_texts_do(gpt2, texts, monkeypatch):
    bars = []

    def drawn(show, **options):
        bars.append(tqdm(**options, file=io.StringIO()))
        return bars[-1]

    monkeypatch.setattr("rome_fast.moment.collect.progress.progress_bar", drawn)
    moment = collect_second_moment(*gpt2, texts, 1, title="text for C")[1]
    [bar] = bars
    assert bar.desc == "text for C" and bar.total == bar.n == moment.count


def test_moments_can_be_edited_with_and_name_themselves(gpt2, texts, settings):
    model, tok = gpt2
    moment = collected(model, tok, texts, source="four sentences")[1]
    settings["second_moment"] = moment
    result = rome_fast.edit(model, tok, REQUEST, **settings)
    assert "keys of four sentences" in result.second_moment and "ridge" in result.second_moment


def test_half_precision_models_are_summed_in_float32(gpt2, texts):
    model, tok = gpt2
    exact = collected(model, tok, texts, tokens=10**6)[1].moment()
    half = collected(model.bfloat16(), tok, texts, tokens=10**6, compensated=True)[1]
    assert half.moment_sum.dtype == torch.float32
    assert half.compensation is not None and half.info["weights_dtype"] == "bfloat16"
    torch.testing.assert_close(half.moment().float(), exact, rtol=0.1, atol=0.05)
    double = collected(model.double(), tok, texts, compensated=True)[1]
    assert double.moment_sum.dtype == torch.float64 and double.compensation is None


def test_training_mode_and_gradients_are_as_before(gpt2, texts):
    model, tok = gpt2
    model.train()
    collected(model, tok, texts)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"tokens": 0}, InvalidArgumentError, "tokens must be 'auto' or at least 1, got 0"),
        ({"tokens": "all"}, InvalidArgumentError, "tokens must be 'auto' .* got 'all'"),
        ({"max_length": 0}, InvalidArgumentError, "max_length must be at least 1, got 0"),
        ({"documents": "mixed"}, InvalidArgumentError, "'separate' or 'joined', got 'mixed'"),
        ({"first_token": True}, InvalidArgumentError, "'keep' or 'skip', got True"),
        ({"damping": -1}, InvalidArgumentError, "damping must be 'auto' or finite"),
        ({"layers": "2"}, InvalidArgumentError, "layers must be a number or a list .* got '2'"),
        ({"layers": 1.0}, InvalidArgumentError, "got 1.0"),
        ({"layers": []}, InvalidArgumentError, "layers must name at least one"),
        ({"layers": [1, 9]}, HparamsError, "layer 9"),
        ({"resume": True}, InvalidArgumentError, "resume=True needs checkpoint="),
        ({"distributed": True}, InvalidArgumentError, "needs a process group"),
    ],
)
def test_bad_options(gpt2, texts, options, error, match):
    model, tok = gpt2
    with pytest.raises(error, match=match):
        collected(model, tok, texts, **options)


def test_non_finite_keys_are_an_error(gpt2, texts):
    model, tok = gpt2
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"h\.1\.mlp\.c_proj: \d+ keys hold NaN or infinity"):
        collected(model, tok, texts)
