"""Tasks of lm-evaluation-harness, before and after edits; what does without it is always tested."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import CONTEXTS, REQUEST, UNWATCHED, same_bits, state
from rich.console import Console

import rome_fast
from rome_fast import Capability, Evaluation, measure_capability
from rome_fast.errors import CapabilityError, InvalidArgumentError, MissingExtraError
from rome_fast.evaluate.capability.results import scores_of
from rome_fast.evaluate.capability.scores import TaskScore

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed"
)

ROWS = [
    {"text": "The Eiffel Tower is in the city of", "choices": ["Paris", "Rome"], "gold": 0},
    {"text": "The capital of Japan is", "choices": ["Rome", "Tokyo"], "gold": 1},
    {"text": "LeBron James plays the sport of", "choices": ["football", "basketball"], "gold": 1},
    {"text": "Marie Curie worked in", "choices": ["physics", "tea"], "gold": 0},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{text}}}}"
metadata: {{version: 1.0}}
"""
CHOICE = (
    TASK
    + """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""
)
SAID = (
    TASK
    + """
output_type: generate_until
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: {most}, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
)
ROLLING = (
    TASK
    + """
output_type: loglikelihood_rolling
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
)
GROUP = "group: both\ntask: [toy_a, toy_b]\naggregate_metric_list: [{metric: acc}]\n"


def capability(samples, value=None, n=None, task="toy", name="acc"):
    value = sum(samples.values()) / len(samples) if value is None else value
    score = TaskScore(value, 0.1, len(samples) if n is None else n, samples)
    return Capability({"tasks": [task]}, {task: {name: score}})


def test_a_change_is_paired_by_sample():
    before = capability({"0:a": 1.0, "1:b": 1.0, "2:c": 0.0, "3:d": 1.0})
    after = capability({"0:a": 1.0, "1:b": 0.0, "2:c": 0.0, "4:e": 1.0})
    found = after.compare(before)["toy"]["acc"]
    assert (found.before, found.after) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert (found.difference.mean, found.difference.n) == (pytest.approx(-1 / 3), 3)
    half = 1.96 * np.std([0, -1, 0], ddof=1) / math.sqrt(3)
    assert found.difference.low == pytest.approx(-1 / 3 - half)


def test_no_interval_where_nothing_can_be_paired():
    before = capability({}, value=9.0, n=4, name="perplexity")
    after = capability({}, value=11.0, n=4, name="perplexity")
    found = after.compare(before)["toy"]["perplexity"]
    assert (found.before, found.after, found.difference) == (9.0, 11.0, None)
    other = capability({"0:changed": 1.0})
    assert other.compare(capability({"0:a": 0.0}))["toy"]["acc"].difference is None


def test_other_tasks_are_not_compared():
    with pytest.raises(InvalidArgumentError, match=r"before has the tasks toy, and none of other"):
        capability({"0:a": 1.0}, task="other").compare(capability({"0:a": 1.0}))


def test_saved_and_loaded_are_equal(tmp_path):
    path = tmp_path / "deep" / "capability.json"
    found = capability({"0:a": 1.0, "1:b": 0.0})
    found.save(path)
    assert Capability.load(path) == found
    assert "0.500 ± 0.100" in str(found) and repr(found) == "<Capability: toy>"
    path.write_text('{"format": "rome_fast.evaluation.1"}')
    with pytest.raises(InvalidArgumentError, match="must have format"):
        Capability.load(path)
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        Capability.load(tmp_path / "absent.json")


def sample(number, filter_name="none", **metrics):
    hashes = {"doc_hash": f"d{number}", "prompt_hash": f"p{number}", "target_hash": f"t{number}"}
    return {
        **{"doc_id": number, "filter": filter_name, "metrics": list(metrics), **hashes},
        **metrics,
    }


def test_scores_are_read_from_what_the_harness_returns():
    found = scores_of(
        {
            "results": {
                "a": {"alias": "a", "acc,none": np.float64(0.5), "acc_stderr,none": 0.25},
                "b": {"acc,none": 1.0, "acc_stderr,none": "N/A", "ppl,none": 7.5, "em,strict": 0.0},
            },
            "samples": {
                "a": [sample(0, acc=1.0), sample(1, acc=0.0)],
                "b": [sample(0, acc=1, ppl=-2.0), sample(0, "strict", em=np.bool_(False))],
            },
            "groups": {"all": {"acc,none": 2 / 3, "sample_count": {"acc,none": 3}}},
            "group_subtasks": {"all": ["inner", "b"], "inner": ["a"]},
        }
    )
    assert list(found) == ["a", "b", "all"]
    assert (found["a"]["acc"].value, found["a"]["acc"].stderr, found["a"]["acc"].n) == (
        0.5,
        0.25,
        2,
    )
    first, second = found["a"]["acc"].samples
    assert first.startswith("0:") and second.startswith("1:")
    assert found["b"]["acc"].stderr is None and list(found["b"]) == ["acc", "ppl", "em,strict"]
    assert found["b"]["ppl"].samples == {} and found["b"]["em,strict"].samples
    assert found["all"]["acc"].n == 3
    assert list(found["all"]["acc"].samples) == [f"a/{first}", f"a/{second}", f"b/{first}"]


@pytest.fixture
def evaluation():
    setting = {
        **{"mode": "sequential", "weight_name": "w", "model": {"name": "m"}},
        **{"hparams": {"variant": "exact"}, "second_moment": "none"},
    }
    before, after = capability({"0:a": 1.0, "1:b": 1.0}), capability({"0:a": 1.0, "1:b": 0.0})
    return Evaluation(setting, {}, (), capability={"before": before, "after": after})


def test_an_evaluation_keeps_and_shows_it(evaluation, tmp_path):
    evaluation.save(tmp_path / "found.json")
    assert Evaluation.load(tmp_path / "found.json") == evaluation
    for width in (60, 100):
        console = Console(width=width, color_system=None)
        with console.capture() as shown:
            console.print(evaluation)
        assert "-0.500 ± 0.980" in shown.get()
    evaluation.save_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "-0.500 ± 0.980" in text and "What the model can do besides" in text


def test_an_evaluation_without_it_still_loads(evaluation):
    fields = json.loads(json.dumps(evaluation.to_json()))
    del fields["capability"]
    old = Evaluation.from_json(fields)
    assert old == replace(evaluation, capability={}) and "samples" not in str(old)


def test_the_missing_package_is_named(gpt2, monkeypatch):
    model, tok = gpt2
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rome-fast\[capability\]'"):
        measure_capability(model, tok, "arc_easy")


def test_bad_arguments_are_refused_without_the_package(gpt2):
    model, tok = gpt2
    for tasks in ([], "", ["arc_easy", 3]):
        with pytest.raises(InvalidArgumentError, match="tasks must be names"):
            measure_capability(model, tok, tasks)
    with pytest.raises(InvalidArgumentError, match="limit must be a whole number"):
        measure_capability(model, tok, "arc_easy", limit=0)
    with pytest.raises(InvalidArgumentError, match="batch_size must be a whole number"):
        measure_capability(model, tok, "arc_easy", batch_size=None)
    with pytest.raises(InvalidArgumentError, match="each record is edited alone"):
        rome_fast.evaluate(model, tok, [REQUEST], capability=["arc_easy"])
    with pytest.raises(InvalidArgumentError, match="capability_limit=3"):
        rome_fast.evaluate(model, tok, [REQUEST], "sequential", capability_limit=3)


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A function that writes a task of local data and returns its file; the hub is not there."""
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tasks").mkdir()

    def write(layout=CHOICE, name="toy", rows=ROWS, **more):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = tmp_path / "tasks" / f"{name}.yaml"
        file.write_text(layout.format(name=name, data=data, **more))
        return file

    return write


def log_prob(model, tok, text, answer):
    """Of the answer after the text, by a forward of its own."""
    start, ids = len(tok(text).input_ids), tok(text + answer).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[i - 1, ids[i]]) for i in range(start, len(ids)))


def values(score):
    return [score.samples[key] for key in sorted(score.samples)]


@needs_lm_eval
def test_choices_are_those_of_the_likeliest_answer(tiny, task):
    model, tok = tiny
    found = measure_capability(model, tok, task(), batch_size=3, progress=False)
    wanted = []
    for row in ROWS:
        scores = [log_prob(model, tok, row["text"], f" {choice}") for choice in row["choices"]]
        wanted.append(float(int(np.argmax(scores)) == row["gold"]))
    score = found.tasks["toy"]["acc"]
    assert values(score) == wanted and score.n == len(ROWS)
    assert score.value == np.mean(wanted)
    assert score.stderr == pytest.approx(np.std(wanted, ddof=1) / 2)
    assert found.setting["versions"] == {"toy": 1.0}
    limited = measure_capability(model, tok, str(task()), 2, progress=False)
    assert values(limited.tasks["toy"]["acc"]) == wanted[:2]
    assert limited.compare(found)["toy"]["acc"].difference.mean == 0


@needs_lm_eval
def test_answers_and_texts_and_groups_of_a_folder(gpt2, task):
    model, tok = gpt2
    ids = tok("The capital of Japan is", return_tensors="pt").input_ids
    said = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    answer = tok.decode(said[0, ids.shape[1] :], skip_special_tokens=True).split(".")[0]
    rows = [
        {**ROWS[1], "choices": [answer.removeprefix(" "), "x"], "gold": gold} for gold in (0, 1)
    ]
    folder = task(SAID, "said", rows, most=3).parent
    task(ROLLING, "texts")
    found = measure_capability(model, tok, folder, progress=False)
    assert sorted(found.tasks) == ["said", "texts"]
    assert values(found.tasks["said"]["exact_match"]) == [1.0, 0.0]
    total = sum(log_prob(model, tok, "", row["text"]) for row in ROWS)
    words = sum(len(row["text"].split()) for row in ROWS)
    perplexity = found.tasks["texts"]["word_perplexity"]
    if tok("").input_ids:  # what the first token follows is the harness's choice elsewhere
        assert perplexity.value == pytest.approx(math.exp(-total / words), rel=1e-4)
    assert perplexity.samples == {} and perplexity.n == len(ROWS)


@needs_lm_eval
@pytest.mark.exhaustive  # the index of all published tasks takes seconds
def test_a_group_has_the_samples_of_its_tasks(gpt2, task):
    folder = task(name="toy_a").parent
    task(name="toy_b", rows=ROWS[:3])
    (folder / "both.yaml").write_text(GROUP)
    found = measure_capability(*gpt2, folder, progress=False)
    pooled = values(found.tasks["toy_a"]["acc"]) + values(found.tasks["toy_b"]["acc"])
    assert values(found.tasks["both"]["acc"]) == pooled
    assert found.tasks["both"]["acc"].value == pytest.approx(np.mean(pooled))


@needs_lm_eval
def test_nothing_is_changed_by_a_measurement(tiny, task, capsys):
    model, tok = tiny
    # A head of its own, where the config would have it tied.
    model.config.tie_word_embeddings = True
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.25)
    model.train()
    model.get_input_embeddings().eval()
    modes = [module.training for module in model.modules()]
    before, objects = state(model), {name: id(p) for name, p in model.named_parameters()}
    tokenizer = (tok.pad_token, len(tok), tok.padding_side)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    wanted = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    file = task(SAID, "said", most=3)
    found = measure_capability(model, tok, [task(), file], progress=False)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == wanted
    assert same_bits(model, before)
    assert {name: id(p) for name, p in model.named_parameters()} == objects
    assert [module.training for module in model.modules()] == modes
    assert (tok.pad_token, len(tok), tok.padding_side) == tokenizer
    assert "tie_weights" not in vars(model) and not list(model._forward_pre_hooks)
    assert measure_capability(model, tok, [task(), file], progress=False) == found
    assert "it/s" not in capsys.readouterr().err


@pytest.fixture
def toy():
    """The embedded model, three of its facts as records, and a task of the same facts' truth."""
    model, tok, facts = rome_fast.demo.load()
    facts = facts[:450:150]
    rows = [
        {
            "text": fact.prompt.replace("{}", fact.subject),
            "choices": [fact.target_new, fact.target],
            "gold": 1,
        }
        for fact in facts
    ]
    return model, tok, [fact.record() for fact in facts], rows


@needs_lm_eval
@pytest.mark.covering(form=["weight"])
@pytest.mark.parametrize("form", ["weight", "neuron", "gate"])
def test_edits_are_seen_in_a_sequence(toy, task, form, tmp_path):
    model, tok, records, rows = toy
    before = state(model)
    found = rome_fast.evaluate(
        *(model, tok, records, "sequential"),
        form=form,
        second_moment="identity" if form == "weight" else None,
        context_templates=CONTEXTS,
        generate_tokens=0,
        capability=task(rows=rows),
        capability_limit=2,
        progress=False,
    )
    assert same_bits(model, before)
    assert [of.tasks["toy"]["acc"].value for of in found.capability.values()] == [1.0, 0.0]
    change = found.capability["after"].compare(found.capability["before"])["toy"]["acc"]
    assert (change.difference.mean, change.difference.n) == (-1.0, 2)
    assert found.setting["capability"]["limit"] == 2 and found.seconds["capability"] > 0
    found.save(tmp_path / "found.json")
    assert Evaluation.load(tmp_path / "found.json") == found


@needs_lm_eval
def test_a_session_is_measured_while_it_is_open(toy, task):
    model, tok, records, rows = toy
    file = task(rows=rows)
    with rome_fast.Session(model, tok, form="gate", health=UNWATCHED) as session:
        before = measure_capability(model, tok, file, progress=False)
        for record in records:
            session.edit(record.request)
        after = measure_capability(model, tok, file, progress=False)
    assert after.compare(before)["toy"]["acc"].difference.mean == -1


@needs_lm_eval
def test_what_cannot_be_measured_is_said_before_an_edit(gpt2, task, tmp_path):
    model, tok = gpt2
    before = state(model)
    damaged = tmp_path / "damaged.yaml"
    damaged.write_text("task: [x\n")
    remote = task()
    remote.write_text(remote.read_text().replace("path: json", "path: nobody/nothing"))
    (tmp_path / "empty").mkdir()
    for tasks, error, said in (
        (tmp_path / "absent.yaml", InvalidArgumentError, "no file or folder .*absent.yaml"),
        (tmp_path / "empty", InvalidArgumentError, "folder .*empty' holds no task"),
        (damaged, CapabilityError, "damaged.yaml' cannot be read"),
        (remote, CapabilityError, "toy.yaml' cannot be read or its data cannot be fetched"),
        (task(SAID, "said", most=500), CapabilityError, "stopped in said: .*500"),
    ):
        with pytest.raises(error, match=said):
            rome_fast.evaluate(
                *(model, tok, [REQUEST], "sequential"),
                capability=tasks,
                second_moment="identity",
                context_templates=CONTEXTS,
                progress=False,
            )
        assert same_bits(model, before) and not model._forward_pre_hooks


@needs_lm_eval
@pytest.mark.exhaustive  # the index of all published tasks takes seconds
def test_an_unknown_task_is_named_with_its_neighbours(gpt2, task):
    with pytest.raises(InvalidArgumentError, match=r"no task 'arc_eesy' \(near it: .*arc_easy"):
        measure_capability(*gpt2, "arc_eesy", progress=False)
    with pytest.raises(CapabilityError, match="task 'arc_easy' cannot be read or its data"):
        measure_capability(*gpt2, "arc_easy", progress=False)


@needs_lm_eval
@pytest.mark.exhaustive  # simple_evaluate describes the machine first, for seconds
def test_the_numbers_are_those_of_simple_evaluate(gpt2, task):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tok = gpt2
    files = [str(task()), str(task(SAID, "said", most=3))]
    found = measure_capability(model, tok, files, progress=False)
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tok), batch_size=2)
    manager = TaskManager(include_defaults=False)
    theirs = simple_evaluate(lm, tasks=files, task_manager=manager)["results"]
    for name, metric in (("toy", "acc"), ("said", "exact_match")):
        score = found.tasks[name][metric]
        assert score.value == theirs[name][f"{metric},none"]
        assert score.stderr == theirs[name][f"{metric}_stderr,none"]
