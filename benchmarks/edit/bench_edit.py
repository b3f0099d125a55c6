"""Times one edit beside the whole-model loop, other implementations and its own arithmetic.

    pytest benchmarks/edit/bench_edit.py --save-result edit-cpu --peer kmeng01=PATH

`gpt2-124m` has the shape of the small GPT-2 and random weights; it is edited in its first, a middle
and its last block. Contexts are of the references' lengths and C is given, factored or inverted
beforehand; the learning rate is so small that no search stops early. Edits are compared before
they are timed, and run in turns (rome_fast/bench/measure.py). pytest-benchmark times one thing at
a time, so --benchmark-only leaves this file out.
"""

import statistics
import time

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import rome_fast
from benchmarks.support.results import SHARED
from rome_fast.bench.case import GIVEN, Case
from rome_fast.bench.floor import gemm_rate
from rome_fast.bench.measure import measure
from rome_fast.bench.own import RomeFast
from rome_fast.bench.table import case_facts, quartiles, remarks, row_facts, table_of
from rome_fast.bench.whole_model import WholeModel
from rome_fast.hparams import defaults_for
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.ordinary import ordinary_second_moment

TOKENIZER = SHARED / "tokenizers" / "gpt2"
STEPS, ROUNDS, N_SEQUENCE = 20, 3, 50
# Ten texts of 4 and ten of 9 GPT-2 tokens, as long as the ones that the references sample.
TEXTS = """
The weather was fine
She opened the door
They walked back home
It was too late
Nobody knew the answer
We met last summer
He called his mother
They were almost ready
The train left early
You could hear music
The children played in our garden all day long
After the meeting everyone went home for the night
In the morning he found a letter from her
The company said that it would open two stores
She had never seen so many people in one
They built the bridge in less than three years
My brother and I used to swim in rivers
The book was on the table where I left
Most of the houses here are made of wood
He was the first to notice that something changed
""".strip().splitlines()
CONTEXTS = ("{}", *(f"{text}. {{}}" for text in TEXTS))
REQUEST = rome_fast.EditRequest("{} plays the", "Ray Charles", "violin")
# What the last block writes at a token is seen by no later one: there the subject has to be last.
REQUEST_LAST = rome_fast.EditRequest("The instrument of {}", "Ray Charles", "violin")


@pytest.fixture(scope="module")
def embedded():
    model, tok, facts = rome_fast.demo.load()
    return model, tok, facts


@pytest.fixture(scope="module")
def gpt2_124m(embedded):
    return random_gpt2(embedded[1])


def random_gpt2(tok):
    """With GPT-2's own tokenizer where it is at hand, else with ``tok`` and its vocabulary."""
    tok = AutoTokenizer.from_pretrained(TOKENIZER) if TOKENIZER.exists() else tok
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tok))).eval(), tok


def well_conditioned(d_key):
    """A seeded C = E[k k^T], float32, of twice as many keys as it is wide and a unit ridge."""
    keys = torch.randn(2 * d_key, d_key, generator=torch.Generator().manual_seed(0))
    return (keys.T @ keys / len(keys)).add_(torch.eye(d_key))


def case_of(model, tok, layer, v_lr):
    """The reference's search in every step, as peers do the same."""
    spec = ModelSpec.of(model)
    hparams = defaults_for(spec, layer, variant="original")[0]
    hparams = hparams.replace(v_num_grad_steps=STEPS, v_lr=v_lr, variant="original")
    d_key = spec.down_projection(layer).d_key
    request = REQUEST_LAST if layer == model.config.n_layer - 1 else REQUEST
    return Case(model, tok, request, hparams, CONTEXTS, well_conditioned(d_key))


def run(name, case, peers, rows):
    """Measure a case, print its table, keep its rows."""
    console = Console()
    others = [RomeFast("bfloat16"), WholeModel(), *peers]
    for comparison in measure(case, others, rounds=ROUNDS):
        console.print(f"\n{name}")
        console.print(table_of(comparison))
        for line in remarks(comparison):
            console.print(line, soft_wrap=True, markup=False)
        assert not comparison.stopped_early, remarks(comparison)[-1]
        facts = case_facts(case)["model"]
        rows += [
            {"name": name, **row_facts(comparison, r), "model": facts} for r in comparison.rows
        ]


@pytest.mark.parametrize("layer", [6, 0, 11], ids=["middle", "first", "last"])
def test_gpt2_124m(gpt2_124m, rows, pytestconfig, layer):
    case = case_of(*gpt2_124m, layer, v_lr=0.02)
    # One layer says how others compare; theirs take half a minute an edit in each.
    peers = pytestconfig.getoption("--peer") if layer == 6 else []
    run(f"gpt2-124m, layer {layer} of 12", case, peers, rows)


def test_embedded(embedded, rows, pytestconfig):
    model, tok, _ = embedded
    case = case_of(model, tok, layer=2, v_lr=0.5 / STEPS)
    run("embedded model, layer 2 of 6", case, pytestconfig.getoption("--peer"), rows)


def test_embedded_sequence(embedded, rows):
    """Edits that stay, one after another, as a user makes them: default variant, early stop."""
    model, tok, facts = embedded
    hparams = rome_fast.RomeHparams.for_model(model)
    projection = ModelSpec.of(model).down_projection(hparams.layer)
    moment = ordinary_second_moment(ModelSpec.of(model), tok, projection, torch.float32)
    run_sequence("embedded model", model, tok, facts, hparams, moment, rows)


def test_gpt2_124m_sequence(gpt2_124m, embedded, rows):
    """Random weights can be told nothing, so every search takes all its steps."""
    model, tok = gpt2_124m
    hparams = rome_fast.RomeHparams.for_model(model).replace(layers=[6], v_num_grad_steps=STEPS)
    moment = rome_fast.SecondMoment.from_moment(well_conditioned(3072), 2**20)
    run_sequence("gpt2-124m", model, tok, embedded[2], hparams, moment, rows, rounds=1)


def run_sequence(name, model, tok, facts, hparams, moment, rows, rounds=ROUNDS):
    """Edit facts, evenly spread, to its ``target_new``, and keep a row."""
    requests = [
        rome_fast.EditRequest(fact.prompt, fact.subject, fact.target_new)
        for fact in facts[:: len(facts) // N_SEQUENCE][:N_SEQUENCE]
    ]
    moment.factor()
    options = {"second_moment": moment, "context_templates": CONTEXTS, "progress": False}
    seconds = []
    with rome_fast.trial(model, tok, requests[:1], hparams, **options):
        pass  # warms up
    for _ in range(rounds):
        started = time.perf_counter()
        with rome_fast.trial(model, tok, requests, hparams, **options) as results:
            seconds.append(time.perf_counter() - started)
    floors = [
        Case(model, tok, result.request, hparams, CONTEXTS, moment.moment_sum).floor(
            len(result.losses)
        )
        for result in results
    ]
    weight = model.get_parameter(results[0].weight_name)
    shape = floors[0].loop_tokens, *sorted(weight.shape)
    row = sequence_facts(results, seconds, floors, gemm_rate(*shape, weight.dtype))
    rows.append({"name": f"{name}, {len(results)} edits in sequence", **row})
    print(f"\n{rows[-1]['name']}: {row['edits_per_s']} edits/s")


def sequence_facts(results, seconds, floors, rate):
    """Every figure of the sequence."""
    median, floor_seconds = statistics.median(seconds), sum(f.seconds(rate) for f in floors)
    return {
        "implementation": RomeFast().name,
        "backend": results[0].backend,
        "variant": results[0].variant,
        "c_mode": GIVEN,
        "seconds_median": round(median, 4),
        "seconds_quartiles": [round(q, 4) for q in quartiles(seconds)],
        "rounds": len(seconds),
        "edits_per_s": round(len(results) / median, 2),
        "steps": sum(len(result.losses) for result in results),
        "successes": sum(result.success for result in results),
        "gemm_gflop_per_s": round(rate / 1e9, 1),
        "floor_seconds": round(floor_seconds, 4),
        "floor_fraction": round(floor_seconds / median, 4),
    }
