"""``rome-fast stats collect``: as the API collects, also after Ctrl-C, kill -9 and torchrun."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from cli_helpers import assert_same_moment, checkpoint_of, contents, python, refusal, stats
from tiny import tiny_llama

from rome_fast import SecondMoment, collect_second_moment
from rome_fast.cli import collect
from rome_fast.cli.common import BAD_INPUT, INTERRUPTED
from rome_fast.moment.collect.forward import KeyReader

# Dies with a checkpoint in place and the next one written but not yet put there.
KILLED = """
import os, signal
from rome_fast.cli import main
from rome_fast.moment.collect import checkpoint

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


def test_collect_reads_ordinary_text_at_the_layer_that_edit_takes(folder, tmp_path):
    out = tmp_path / "layer.npz"
    more = ["--tokens", 500, "--sample-size", 7, "--out", out]
    result = stats("collect", "--model", folder, *more)
    assert result.exit_code == 0, result.output
    assert "layer 1, the one that `edit` takes" in result.stdout
    assert "500 keys of ordinary text" in result.stdout
    with np.load(out) as file:
        assert (file["mom2.count"], file["sample_size"]) == (500, 7)


@pytest.mark.exhaustive
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
    alone, shared = SecondMoment.load(one), SecondMoment.load(two)
    assert_same_moment(shared, alone)
    assert alone.count == 12_090
    assert sorted(path.name for path in tmp_path.iterdir()) == [one.name, two.name]


@pytest.mark.exhaustive
def test_a_script_without_a_main_guard_starts_no_process(folder, texts, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = python(script, folder, texts)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "count 3000\n"


@pytest.mark.exhaustive
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

    monkeypatch.setattr(collect, "load_model", press_ctrl_c)
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
    monkeypatch.setattr(collect, "collect_second_moment", lambda *_, **__: pytest.fail("ran"))
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
        (["--max-length", 0], "max_length must be at least 1, got 0"),
        (["--tokens", 0], "tokens must be 'auto' or at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(arguments, tmp_path, more, message):
    assert message in refusal(stats(*arguments, "--out", tmp_path / "out", *more))
