"""``rome-fast stats``: files as the API makes them, also after Ctrl-C, kill -9 and torchrun."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from tiny import SENTENCES, tiny_llama
from typer.testing import CliRunner

from rome_fast import SecondMoment, cli_stats, collect_second_moment
from rome_fast.cli import app
from rome_fast.cli_common import BAD_INPUT, INTERRUPTED
from rome_fast.collect import checkpoint
from rome_fast.collect.forward import KeyReader
from rome_fast.errors import SecondMomentWarning

# Dies with a checkpoint in place and the next one written but not yet put there.
KILLED = """
import os, signal
from rome_fast.cli import main
from rome_fast.collect import checkpoint

write_whole, written = checkpoint.write_whole, []

def write_or_die(path, store, agree):
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    write_whole(path, store, die if len(written) == 3 else agree)
    written.append(path)

checkpoint.SECONDS_BETWEEN, checkpoint.write_whole = 0, write_or_die
main()
"""

# Has no `if __name__ == "__main__"`: a worker started by spawn would run all of it again.
UNGUARDED = """
import multiprocessing, resource, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
import rome_fast

multiprocessing.set_start_method("spawn")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tok = AutoTokenizer.from_pretrained(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_CHILDREN)
moments = rome_fast.collect_second_moment(model, tok, sys.argv[2], 1, tokens=3000)
assert resource.getrusage(resource.RUSAGE_CHILDREN) == before, "a process was started and ended"
assert not multiprocessing.active_children(), "a process was started"
print("count", moments[1].count)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tiny_llama(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    draw, words = random.Random(0), " ".join(SENTENCES).split()
    lines = [" ".join(draw.choices(words, k=draw.randint(3, 40))) for _ in range(400)]
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def arguments(folder, texts):
    """About 17,000 tokens: several batches and checks."""
    return ["collect", "--model", folder, "--texts", texts, "--layers", "1,2"]


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    assert stats(*arguments, "--out", out).exit_code == 0
    return contents(out)


@pytest.fixture
def moment_file(tmp_path):
    return small_file(tmp_path / "moment.safetensors")


def saved(model_and_tok, path):
    for part in model_and_tok:
        part.save_pretrained(path)
    return path


def small_file(path, diagonal=(8.0, 4.0, 2.0, 0.0), **info):
    moment = SecondMoment.from_moment(torch.diag(torch.tensor(diagonal)), 10)
    moment.info = info
    moment.save(path)
    return path


def stats(*arguments):
    return CliRunner().invoke(app, ["stats", *map(str, arguments)], env={"COLUMNS": "80"})


def python(*arguments):
    """A process of its own, with the one thread that makes the same bits as in this one."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def checkpoint_of(out):
    return out.with_name(f".{out.name}.checkpoint")


def refusal(result):
    """The one line that was printed instead of a traceback."""
    assert result.exit_code == BAD_INPUT, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def assert_same_moment(one, other):
    assert one.count == other.count
    a, b = one.moment().double(), other.moment().double()
    assert (a - b).norm() < 1e-6 * b.norm()


def test_collect_writes_what_the_api_returns(arguments, texts, tmp_path):
    more = ["--tokens", 3000, "--max-length", 64, "--first-token", "skip"]
    more += ["--documents", "joined", "--dtype", "compensated"]
    result = stats(*arguments, *more, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("saved: ") == 2
    expected = collect_second_moment(
        *tiny_llama(), texts, [1, 2], tokens=3000, max_length=64, first_token="skip",
        documents="joined", compensated=True,
    )  # fmt: skip
    for layer, moment in expected.items():
        read = SecondMoment.load(tmp_path / "out" / f"layer_{layer}.safetensors")
        assert torch.equal(read.moment_sum.tril(), moment.moment_sum.tril())
        assert torch.equal(read.compensation.tril(), moment.compensation.tril())
        assert read.info == moment.info
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_collect_samples_text_for_the_layer_that_edit_takes(folder, tmp_path):
    out = tmp_path / "layer.npz"
    more = ["--tokens", 500, "--sample-size", 7, "--out", out]
    result = stats("collect", "--model", folder, *more)
    assert result.exit_code == 0, result.output
    assert "layer 1, the one that `edit` takes" in result.stdout
    assert "500 keys of text sampled from the model" in result.stdout
    with np.load(out) as file:
        assert (file["mom2.count"], file["sample_size"]) == (500, 7)


def test_two_processes_equal_one(folder, texts, tmp_path):
    """189 rows, the last one shorter."""
    arguments = ["--model", folder, "--texts", texts, "--layers", 1, "--tokens", 12_090]
    arguments += ["--max-length", 64]
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert stats("collect", *arguments, "--out", one).exit_code == 0
    torchrun = ["-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "-m", "rome_fast", "stats", "collect"]
    done = python(*torchrun, *arguments, "--out", two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved: ") == 1
    assert_same_moment(SecondMoment.load(two), SecondMoment.load(one))
    assert sorted(path.name for path in tmp_path.iterdir()) == [one.name, two.name]


def test_a_script_without_a_main_guard_starts_no_process(folder, texts, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = python(script, folder, texts)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "count 3000\n"


def test_kill_and_resume_give_the_same_bytes(arguments, uninterrupted, tmp_path):
    out, driver = tmp_path / "out", tmp_path / "driver.py"
    driver.write_text(KILLED)
    killed = python(driver, "stats", *arguments, "--out", out)
    assert killed.returncode == -signal.SIGKILL
    assert checkpoint_of(out).exists()
    assert contents(out) == {}
    result = stats(*arguments, "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert contents(out) == uninterrupted
    assert not checkpoint_of(out).exists()


def test_interrupt_and_resume_give_the_same_bytes(arguments, uninterrupted, tmp_path, monkeypatch):
    out, read, batches = tmp_path / "out", KeyReader.read, []

    def read_and_press_ctrl_c(self, rows, take):
        batches.append(rows)
        if len(batches) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        read(self, rows, take)

    with monkeypatch.context() as patched:
        patched.setattr(KeyReader, "read", read_and_press_ctrl_c)
        result = stats(*arguments, "--out", out)
    assert result.exit_code == INTERRUPTED
    last = result.stderr.strip().splitlines()[-1]
    assert last == "rome-fast: interrupted: run the same command with --resume to go on"
    assert "--resume" in refusal(stats(*arguments, "--out", out))
    assert stats(*arguments, "--out", out, "--resume").exit_code == 0
    assert contents(out) == uninterrupted


def test_interrupt_before_the_start_promises_nothing(arguments, tmp_path, monkeypatch):
    def press_ctrl_c(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_stats, "load_model", press_ctrl_c)
    result = stats(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == INTERRUPTED
    assert result.stderr == "rome-fast: interrupted before there was anything to keep\n"


def test_failure_to_save_loses_nothing(arguments, uninterrupted, tmp_path, monkeypatch):
    out, save = tmp_path / "out", SecondMoment.save

    def save_until_full(self, path):
        if path.name == "layer_2.safetensors":
            raise OSError("no space left on device")
        save(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "SECONDS_BETWEEN", 0)
        patched.setattr(SecondMoment, "save", save_until_full)
        result = stats(*arguments, "--out", out)
    assert result.exit_code == BAD_INPUT
    assert "no space left" in result.stderr
    assert checkpoint_of(out).exists()
    assert stats(*arguments, "--out", out, "--resume").exit_code == 0
    assert contents(out) == uninterrupted


@pytest.mark.parametrize(
    ("there", "more", "message"),
    [
        ("out/layer_2.safetensors", [], "layer_2.safetensors exists: choose another"),
        ("out/layer_2.safetensors", ["--resume"], "layer_2.safetensors exists: choose another"),
        (".out.checkpoint", [], "go on from it with --resume, or delete it"),
        (".out.checkpoint.rank0of2", ["--resume"], "another number of processes than 1"),
        ("file", ["--out", "file/out"], "NotADirectoryError"),
        (None, ["--out", "one.safetensors"], "is one file, for one layer"),
        (None, ["--out", "one.npz"], "give --sample-size"),
        (None, ["--sample-size", 0], "--sample-size must be at least 1, got 0"),
        (None, ["--tokens", "many"], "--tokens must be auto or a number, got 'many'"),
        (None, ["--layers", "1;2"], "--layers must be numbers with commas between"),
        (None, ["--dtype", "bfloat16"], "--dtype must be one of float32, float64, compensated"),
        (None, ["--model", "./absent"], "--model ./absent: there is no such folder"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_before(
    arguments, tmp_path, monkeypatch, there, more, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_stats, "collect_second_moment", lambda *_, **__: pytest.fail("ran"))
    if there:
        (tmp_path / there).parent.mkdir(exist_ok=True)
        (tmp_path / there).touch()
    assert message in refusal(stats(*arguments, "--out", "out", *more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--texts", "absent.txt"], "InvalidArgumentError: texts: there is no file 'absent.txt'"),
        (["--layers", 9], "HparamsError"),
        (["--documents", "mixed"], "documents must be 'separate' or 'joined', got 'mixed'"),
        (["--first-token", "drop"], "first_token must be 'keep' or 'skip', got 'drop'"),
        (["--max-length", 1], "max_length must be at least"),
        (["--tokens", 0], "tokens must be 'auto' or at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(arguments, tmp_path, more, message):
    assert message in refusal(stats(*arguments, "--out", tmp_path / "out", *more))


def test_merge_equals_one_collection(folder, tmp_path):
    """Eight texts fill a row, so that the rows of the halves are those of the whole."""
    _, tok = tiny_llama()
    draw, words, lines = random.Random(1), " ".join(SENTENCES).split(), []
    while len(lines) < 120:
        line = " ".join(draw.choices(words, k=8))
        if len(tok(line).input_ids) == 16:
            lines.append(line)
    parts = {"whole": lines, "first": lines[:80], "second": lines[80:]}
    files = {name: tmp_path / f"{name}.safetensors" for name in (*parts, "merged")}
    for name, part in parts.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(part))
        common = ["--model", folder, "--layers", 1, "--tokens", 10_000, "--out", files[name]]
        assert stats("collect", "--texts", tmp_path / f"{name}.txt", *common).exit_code == 0
    result = stats("merge", files["first"], files["second"], "--out", files["merged"])
    assert result.exit_code == 0, result.output
    merged = SecondMoment.load(files["merged"])
    assert_same_moment(merged, SecondMoment.load(files["whole"]))
    assert merged.count == 120 * 16
    assert "first.txt + 640 keys of second.txt" in result.stdout


def test_merge_refuses_what_does_not_belong_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_file("a.safetensors", module="mlp.1", weights="aa")
    small_file("b.safetensors", module="mlp.2", weights="aa")
    small_file("c.safetensors", module="mlp.1", weights="cc")
    small_file("d.safetensors", diagonal=(1.0, 2.0))
    told = refusal(stats("merge", "a.safetensors", "b.safetensors", "--out", "m.safetensors"))
    assert "a.safetensors and b.safetensors: " in told
    assert "the module differs: mlp.1 and mlp.2" in told
    told = refusal(stats("merge", "a.safetensors", "c.safetensors", "--out", "m.safetensors"))
    assert "the weights below the layer (hash) differs: aa and cc" in told
    told = refusal(stats("merge", "a.safetensors", "d.safetensors", "--out", "m.safetensors"))
    assert "d_key 4 and 2" in told
    told = refusal(stats("merge", "a.safetensors", "a.safetensors", "--out", "a.safetensors"))
    assert "a.safetensors exists" in told
    assert "two files or more" in refusal(stats("merge", "a.safetensors", "--out", "m.npz"))
    told = refusal(stats("merge", "a.safetensors", "a.safetensors", "--out", "m.npz"))
    assert "--sample-size" in told
    assert len(list(tmp_path.iterdir())) == 4


def test_convert_there_and_back(moment_file, tmp_path):
    npz, back = tmp_path / "m.npz", tmp_path / "back.safetensors"
    assert "--sample-size" in refusal(stats("convert", moment_file, npz))
    assert stats("convert", moment_file, npz, "--sample-size", 5).exit_code == 0
    with np.load(npz) as file:
        assert file["sample_size"] == 5
        assert file["mom2.mom2"].diagonal().tolist() == [80, 40, 20, 0]
    assert stats("convert", npz, back).exit_code == 0
    assert_same_moment(SecondMoment.load(back), SecondMoment.load(moment_file))
    assert SecondMoment.load(back).info["sample_size"] == 5
    assert "back.safetensors exists" in refusal(stats("convert", npz, back))
    assert "must end in .safetensors or .npz" in refusal(stats("convert", npz, tmp_path / "m.pt"))
    assert "there is no file" in refusal(
        stats("convert", tmp_path / "absent.npz", tmp_path / "a.npz")
    )


def test_show_computes_the_spectrum(moment_file):
    result = stats("show", moment_file)
    assert result.exit_code == 0, result.output
    rows = (line.strip().partition(" ") for line in result.stdout.splitlines())
    facts = {name: rest for name, _, rest in rows}
    assert facts["keys"].strip() == "10, 2.5 per dimension"
    assert facts["rank"].strip() == "3 of 4 eigenvalues are above rounding"
    assert facts["effective"].startswith("rank  2.3 (")  # 14^2 / (64 + 16 + 4)
    assert facts["condition"].strip() == "infinite"
    assert facts["largest"].strip().startswith("8.00e+00   ━")
    assert facts["smallest"].strip() == "0.00e+00"


def test_show_says_all_that_was_collected_in_80_columns(uninterrupted, tmp_path):
    path = tmp_path / "layer_1.safetensors"
    path.write_bytes(uninterrupted[path.name])
    result = stats("show", path)
    assert result.exit_code == 0, result.output
    info = SecondMoment.load(path).info
    for wanted in (
        "layer_1.safetensors: ", "model.layers.1.mlp.down_proj", "1 of a llama", "texts.txt",
        "auto: ridge", "with the ridge", info["weights"][:8], info["config"][:8],
        info["tokenizer"][:8], "rome_fast 0.", f"{info['convergence']['checks'][-1]['count']:,}",
    ):  # fmt: skip
        assert wanted in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_show_refuses_what_has_no_spectrum(tmp_path):
    path = small_file(tmp_path / "zero.safetensors", diagonal=(0.0, 0.0))
    assert "is zero or not finite" in refusal(stats("show", path))
    assert "there is no file" in refusal(stats("show", tmp_path / "absent.safetensors"))


def test_a_warning_is_one_line(moment_file, monkeypatch):
    def warn(moment, path):
        warnings.warn("factored\nin float32", SecondMomentWarning, stacklevel=2)

    monkeypatch.setattr(cli_stats, "print_moment", warn)
    result = stats("show", moment_file)
    assert result.exit_code == 0
    assert result.stderr == "rome-fast: SecondMomentWarning: factored in float32\n"
