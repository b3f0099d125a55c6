"""A float16 checkpoint on the command line, without a GPU: computed in float32, kept in float16."""

import json

import pytest
import torch
from cli_helpers import stats
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import rome_fast
from rome_fast import EditLog, demo
from rome_fast.cli.app import app

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in float16")

SETTINGS = "layers: [2]\nv_num_grad_steps: 20\ncontext_template_length_params: [[5, 4]]\n"
MATRIX = "transformer.h.2.mlp.c_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A float16 checkpoint; two edits of it in a journal; the model that was saved with them."""
    folder = tmp_path_factory.mktemp("half")
    model, tok, facts = demo.load(dtype=torch.float16)
    model.save_pretrained(folder / "model")
    tok.save_pretrained(folder / "model")
    (folder / "settings.yaml").write_text(SETTINGS)
    by_subject = {fact.subject: fact for fact in facts}
    rows = [
        {"prompt": f.prompt, "subject": f.subject, "target": f.target_new}
        for f in list(by_subject.values())[:2]
    ]
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    run(
        *("edit", "--model", folder / "model", "--requests", folder / "facts.jsonl"),
        *("--journal", folder / "edits.journal", "--hparams", folder / "settings.yaml"),
        *("--second-moment", "identity", "--save", folder / "edited"),
    )
    return folder


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output


def loaded(path):
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def test_what_is_saved_is_float16_and_differs_in_the_edited_matrix_only(folder):
    before = load_file(folder / "model" / "model.safetensors")
    after = load_file(folder / "edited" / "model.safetensors")
    assert {x.dtype for x in after.values()} == {torch.float16}
    assert json.loads((folder / "edited" / "config.json").read_text())["dtype"] == "float16"
    assert [name for name in before if not torch.equal(before[name], after[name])] == [MATRIX]


def test_python_applies_the_journal_to_the_same_checkpoint_bit_for_bit(folder):
    model, _ = loaded(folder / "model")
    assert model.dtype == torch.float16
    log = EditLog.load(folder / "edits.journal")
    assert log.base.edited[MATRIX].dtype == "float16"
    log.apply(model)
    saved = load_file(folder / "edited" / "model.safetensors")
    assert all(torch.equal(x, saved[n]) for n, x in model.state_dict().items() if n in saved)


@pytest.mark.exhaustive
def test_a_session_in_python_goes_on_with_the_journal(folder, tmp_path):
    model, tok = loaded(folder / "model")
    path = tmp_path / "edits.journal"
    path.write_bytes((folder / "edits.journal").read_bytes())
    with rome_fast.Session.resume(path, model, tok) as session:
        assert len(session.log) == 2


def test_apply_saves_float16(folder, tmp_path):
    run("apply", folder / "edits.journal", "--model", folder / "model", "--save", tmp_path / "out")
    made, wanted = (
        load_file(x / "model.safetensors") for x in (tmp_path / "out", folder / "edited")
    )
    assert all(torch.equal(x, wanted[n]) for n, x in made.items())


def test_statistics_collected_here_are_taken_by_python(folder, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("Ray Charles plays the piano. Paris is the capital of France.\n" * 200)
    out = tmp_path / "stats"
    result = stats(
        *("collect", "--model", folder / "model", "--texts", texts, "--layers", "2"),
        *("--tokens", 2000, "--out", out),
    )
    assert result.exit_code == 0, result.output
    [path] = out.iterdir()
    model, tok = loaded(folder / "model")
    request = {"prompt": "{} plays the", "subject": "Ray Charles", "target_new": "violin"}
    hparams = rome_fast.RomeHparams.from_file(folder / "settings.yaml").replace(v_num_grad_steps=2)
    result = rome_fast.edit(model, tok, request, hparams, second_moment=path)
    assert rome_fast.SecondMoment.load(path).info["weights_dtype"] == "float16"
    result.revert()


@pytest.mark.exhaustive
def test_a_log_made_on_the_checkpoint_in_float32_is_applied_too(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tok = AutoTokenizer.from_pretrained(folder / "model")
    hparams = rome_fast.RomeHparams.from_file(folder / "settings.yaml")
    path = tmp_path / "edits.journal"
    with rome_fast.Session(model, tok, hparams, second_moment="identity", journal=path) as session:
        session.edit({"prompt": "{} plays the", "subject": "Ray Charles", "target_new": "violin"})
    assert EditLog.load(path).base.edited[MATRIX].dtype == "float32"
    run("apply", path, "--model", folder / "model", "--save", tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(made[n], x.half()) for n, x in model.state_dict().items() if n in made)
