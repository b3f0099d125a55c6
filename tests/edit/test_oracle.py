"""The oracle against hand calculations: what a faster implementation may rely on it for."""

import copy
import json
from functools import cache

import oracle
import pytest
import tiny
import torch
from oracle import OracleEdit, find_lookup, find_target_ids, oracle_edit
from shared_data import shared
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

# What the oracle says is not a promise of the package.
pytestmark = pytest.mark.exhaustive

CONTEXTS = ["{}", "The old house. {}", "He said that, near the river. {}"]
EDIT = {"prompt": "{} is in the city of", "subject": "Eiffel Tower", "target": "Rome"}
DOWN = {"gpt2": "transformer.h.1.mlp.c_proj", "llama": "model.layers.1.mlp.down_proj"}
FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])
MOMENTS = pytest.mark.parametrize("moment", ["identity", "estimated"])


@cache
def tiny_pair(family: str):
    return tiny.tiny_gpt2() if family == "gpt2" else tiny.tiny_llama()


def second_moment(family: str, moment: str) -> Tensor | None:
    return None if moment == "identity" else tiny.tiny_second_moment(d_key(family))


def d_key(family: str) -> int:
    return 256 if family == "gpt2" else 176


@cache
def edited(family: str, moment: str = "estimated", **options) -> OracleEdit:
    model, tok = tiny_pair(family)
    settings = {
        **EDIT,
        "context_templates": CONTEXTS,
        "second_moment": second_moment(family, moment),
        "down_projection": DOWN[family],
    }
    return oracle_edit(model, tok, **{**settings, **options})


def texts(prompt: str = EDIT["prompt"]) -> list[str]:
    return [c.replace("{}", prompt).replace("{}", EDIT["subject"]) for c in CONTEXTS]


def keys_by_hand(family: str) -> Tensor:
    """Keys [n, d_key] from one unpadded forward pass per context, subject found by its words."""
    model, tok = tiny_pair(family)
    model = copy.deepcopy(model).double()
    keys = []
    hook = model.get_submodule(DOWN[family]).register_forward_hook(
        lambda _module, args, _output: keys.append(args[0][0, -1])
    )
    with torch.no_grad():
        for text in texts():  # the subject's end is the end of the text up to it
            end = text.index(EDIT["subject"]) + len(EDIT["subject"])
            model(**tok(text[:end], return_tensors="pt", return_token_type_ids=False))
    hook.remove()
    return torch.stack(keys)


def as_matrix(family: str, edit: OracleEdit) -> Tensor:
    """The update as [d_value, d_key], whatever the layout of the weight."""
    module = tiny_pair(family)[0].get_submodule(DOWN[family])
    assert edit.dense.shape == module.weight.shape
    return edit.dense.T if isinstance(module, Conv1D) else edit.dense


def nll_of_target(model: nn.Module, tok, text: str, target_ids: list[int]) -> float:
    """Mean minus log-probability of the target's tokens after the text, one row, no padding."""
    ids = tok(text)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids + target_ids])).logits[0]
    log_probs = logits[len(ids) - 1 : -1].log_softmax(-1)
    return -log_probs[range(len(target_ids)), target_ids].mean().item()


def assert_close(actual: Tensor, expected: Tensor, rtol: float = 1e-6):
    assert (actual - expected).norm() <= rtol * expected.norm()


# ----------------------------------------------------------------------------- the linear algebra


@pytest.mark.covering
@FAMILIES
@MOMENTS
def test_prompt_key_moves_the_prompt_by_delta(family, moment):
    edit = edited(family, moment, variant="prompt_key")
    assert edit.delta.norm() > 1
    assert_close(as_matrix(family, edit) @ keys_by_hand(family)[0], edit.delta)


@pytest.mark.covering
@FAMILIES
@MOMENTS
def test_mean_key_moves_the_mean_output_to_the_target(family, moment):
    edit, keys = edited(family, moment, variant="mean_key"), keys_by_hand(family)
    weight = tiny_pair(family)[0].get_submodule(DOWN[family]).weight.detach().double()
    weight = weight.T if family == "gpt2" else weight
    # The bias is in both outputs and cancels: W k_0 + delta = (W + dW) mean(k).
    expected = weight @ keys[0] + edit.delta - weight @ keys.mean(0)
    assert_close(as_matrix(family, edit) @ keys.mean(0), expected)


@pytest.mark.covering
@FAMILIES
@MOMENTS
def test_both_keys_satisfies_both_constraints(family, moment):
    edit, keys = edited(family, moment, variant="both_keys"), keys_by_hand(family)
    assert_close(as_matrix(family, edit) @ keys[0], edit.delta)
    assert_close(as_matrix(family, edit) @ keys.mean(0), edit.delta)


@FAMILIES
def test_both_keys_is_the_least_change_that_satisfies_them(family):
    edit, keys = edited(family, variant="both_keys"), keys_by_hand(family)
    inverse = torch.linalg.inv(second_moment(family, "estimated"))
    both = torch.stack([keys[0], keys.mean(0)], dim=1)
    residuals = edit.delta[:, None].expand(-1, 2)
    expected = residuals @ torch.linalg.inv(both.T @ inverse @ both) @ both.T @ inverse
    assert_close(as_matrix(family, edit), expected)


def test_both_keys_with_one_context_is_prompt_key():
    model, tok = tiny_pair("gpt2")
    both, one = (
        oracle_edit(
            model, tok, **EDIT, context_templates=["{}"], second_moment=None,
            down_projection=DOWN["gpt2"], variant=variant,
        )
        for variant in ("both_keys", "prompt_key")
    )  # fmt: skip
    assert_close(both.dense, one.dense, rtol=1e-12)


@pytest.mark.covering
@FAMILIES
@MOMENTS
def test_original_equals_the_closed_form(family, moment):
    edit, keys = edited(family, moment), keys_by_hand(family)
    moment_matrix = second_moment(family, moment)
    solved = keys.mean(0) if moment_matrix is None else moment_matrix.inverse() @ keys.mean(0)
    assert_close(as_matrix(family, edit), torch.outer(edit.delta, solved) / (keys[0] @ solved))
    assert edit.u.norm().item() == pytest.approx(1.0)
    assert_close(edit.u, solved / solved.norm())


def test_variants_differ():
    dense = [edited("gpt2", variant=variant).dense for variant in oracle.VARIANTS]
    for i, first in enumerate(dense):
        for second in dense[i + 1 :]:
            assert (first - second).norm() > 1e-2 * first.norm()


# --------------------------------------------------------------------------------- the value loop


@FAMILIES
def test_edit_raises_the_probability_of_the_target(family):
    model, tok = tiny_pair(family)
    edit = edited(family, variant="prompt_key")
    target_ids = find_target_ids(tok, texts()[0], EDIT["target"])
    after = copy.deepcopy(model).double()
    with torch.no_grad():
        after.get_submodule(DOWN[family]).weight += edit.dense
    before_nll = nll_of_target(model, tok, texts()[0], target_ids)
    assert nll_of_target(after, tok, texts()[0], target_ids) < before_nll - 0.5


@pytest.mark.covering
@FAMILIES
@pytest.mark.parametrize("target", ["Rome", " the capital of Japan"])
def test_first_loss_is_the_unedited_nll(family, target):
    model, tok = tiny_pair(family)
    target_ids = find_target_ids(tok, texts()[0], target)
    by_hand = [nll_of_target(model, tok, text, target_ids) for text in texts()]
    assert edited(family, target=target).losses[0] == pytest.approx(sum(by_hand) / 3, rel=1e-5)


def test_last_step_only_looks():
    assert not edited("gpt2", steps=1).delta.any()
    two = edited("gpt2", steps=2)  # Adam's first step is lr in every coordinate
    assert len(two.losses) == 2
    assert_close(two.delta.abs(), torch.full_like(two.delta, 0.5), rtol=1e-4)


def test_low_loss_stops_before_the_update(monkeypatch):
    model, tok = tiny_pair("gpt2")
    settings = {"context_templates": CONTEXTS, "second_moment": None, **EDIT}
    history = edited("gpt2", "identity").losses
    threshold = sorted(history)[len(history) // 2]
    monkeypatch.setattr(oracle, "EARLY_STOP_LOSS", threshold)
    stopped = oracle_edit(model, tok, **settings, down_projection=DOWN["gpt2"])
    first_below = next(i for i, loss in enumerate(history) if loss < threshold)
    assert stopped.losses == pytest.approx(history[: first_below + 1])
    assert_close(stopped.delta, edited("gpt2", "identity", steps=first_below + 1).delta)


def test_clamp_bounds_delta_by_the_unedited_output():
    tight = edited("gpt2", clamp=0.25).delta.norm()
    assert edited("gpt2", clamp=0.5).delta.norm() == pytest.approx(2 * tight.item())


def test_weight_decay_is_the_norm_over_the_squared_init():
    free = edited("gpt2", weight_decay=0.0, steps=2)
    decayed = edited("gpt2", weight_decay=10.0, steps=2)
    # Both took Adam's first step, whose size is lr in every coordinate.
    expected = 10.0 * decayed.delta.norm() / radius_of_target_init() ** 2
    assert decayed.losses[1] - free.losses[1] == pytest.approx(expected.item(), rel=1e-6)


def test_kl_is_of_the_edited_from_the_unedited_after_the_subject():
    free = edited("gpt2", weight_decay=0.0, kl_factor=0.0, steps=2)
    held = edited("gpt2", weight_decay=0.0, kl_factor=10.0, steps=2)
    assert held.losses[0] == free.losses[0]
    assert_close(held.delta, free.delta)  # the KL is flat where it starts
    before, after = next_word_log_probs(0 * free.delta), next_word_log_probs(free.delta)
    expected = 10.0 * (after.exp() * (after - before)).sum()
    assert held.losses[1] - free.losses[1] == pytest.approx(expected.item(), rel=1e-6)


def next_word_log_probs(delta: Tensor) -> Tensor:
    """Log-probabilities [vocab] after the subject alone, delta added to its MLP output."""
    model, tok = tiny_pair("gpt2")
    model = copy.deepcopy(model).double()
    last = torch.zeros(len(tok(EDIT["subject"])["input_ids"]), 1, dtype=torch.float64)
    last[-1] = 1
    model.get_submodule(DOWN["gpt2"]).register_forward_hook(lambda _m, _a, out: out + last * delta)
    with torch.no_grad():
        ids = tok(EDIT["subject"], return_tensors="pt")["input_ids"]
        return model(ids).logits[0, -1].log_softmax(-1)


def radius_of_target_init() -> Tensor:
    module = tiny_pair("gpt2")[0].get_submodule(DOWN["gpt2"])
    output = keys_by_hand("gpt2")[0] @ module.weight.double() + module.bias.double()
    return output.detach().norm()


def test_padding_side_of_the_tokenizer_is_irrelevant():
    model, tok = tiny_pair("gpt2")
    other = copy.deepcopy(tok)
    other.padding_side, other.pad_token = "left", other.eos_token
    settings = {"context_templates": CONTEXTS, "second_moment": None, **EDIT}
    edit = oracle_edit(model, other, **settings, down_projection=DOWN["gpt2"])
    assert torch.equal(edit.dense, edited("gpt2", "identity").dense)


def test_model_of_the_caller_is_untouched():
    model, tok = tiny.tiny_gpt2()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    oracle_edit(
        model, tok, **EDIT, context_templates=CONTEXTS, second_moment=None,
        down_projection=DOWN["gpt2"], steps=2,
    )  # fmt: skip
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


# ----------------------------------------------------------------------------- words and positions


def load_tokenizer(folder: str) -> PreTrainedTokenizerFast:
    path = shared(folder)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path / "tokenizer.json"), bos_token=settings.get("bos_token")
    )


GPT2_LOOKUPS = [
    ("{} plays the sport of", "LeBron James", "subject_last", 2, " James"),
    ("{} plays the sport of", "LeBron James", "subject_first", 0, "Le"),
    ("{} plays the sport of", "LeBron James", "subject_first_after_last", 3, " plays"),
    ("{} plays the sport of", "LeBron James", "last", 6, " of"),
    ("The sport of {}", "LeBron James", "subject_first_after_last", 4, " James"),
    ("He said. {} plays", "LeBron James", "subject_last", 4, " James"),
    ('He said "{}" and', "LeBron James", "subject_last", 5, " James"),
    ("In Zürich, {}'s home", "Søren 日本", "subject_last", 12, None),
]


@pytest.mark.parametrize(("template", "subject", "fact_token", "index", "token"), GPT2_LOOKUPS)
def test_lookup_in_gpt2(template, subject, fact_token, index, token):
    tok = load_tokenizer("tokenizers/gpt2")
    assert find_lookup(tok, template, subject, fact_token) == index
    ids = tok(template.replace("{}", subject))["input_ids"]
    if token is None:  # the last character is several tokens: all of them, and no more
        assert tok.decode(ids[: index + 1]) == template.split("{}")[0] + subject
    else:
        assert tok.decode([ids[index]]) == token


STORIES_LOOKUPS = [
    ("{} is a", "Lily", "subject_last", 1),
    ("One day, {} went", "Lily", "subject_last", None),
    ("One day, {} went", "Lily and Tim", "subject_last", None),
    ("{} went", "Zürich", "subject_last", None),
]


@pytest.mark.parametrize(("template", "subject", "fact_token", "index"), STORIES_LOOKUPS)
def test_lookup_in_stories(template, subject, fact_token, index):
    tok = load_tokenizer("models/stories260K")
    found = find_lookup(tok, template, subject, fact_token)
    assert index in (None, found)
    ids = tok(template.replace("{}", subject))["input_ids"]
    assert ids[0] == tok.bos_token_id
    up_to, one_less = tok.decode(ids[1 : found + 1]), tok.decode(ids[1:found])
    assert up_to.strip() == template.split("{}")[0] + subject
    assert one_less.strip() != up_to.strip()


@pytest.mark.parametrize("folder", ["tokenizers/gpt2", "models/stories260K"])
@pytest.mark.parametrize("target", ["football", " football", "a big red ball"])
def test_target_continues_the_prompt(folder, target):
    tok, text = load_tokenizer(folder), "Lily plays the sport of"
    target_ids = find_target_ids(tok, text, target)
    assert tok(text)["input_ids"] + target_ids == tok(f"{text} {target.strip()}")["input_ids"]
    assert tok.bos_token_id not in target_ids


@FAMILIES
def test_lookup_of_every_row(family):
    model_tok = tiny_pair(family)[1]
    rows = [*texts(), f"{EDIT['subject']} is a"]
    for text, found in zip(rows, edited(family).lookup_idx, strict=True):
        ids = model_tok(text)["input_ids"]
        assert model_tok.decode(ids[: found + 1]).endswith(EDIT["subject"])


def test_subject_without_letters_is_refused():
    tok = tiny_pair("gpt2")[1]
    with pytest.raises(ValueError, match="holds no token"):
        find_lookup(tok, "{} is a", " ", "subject_last")
