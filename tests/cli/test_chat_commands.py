"""Chats on the command line: `edit --chat`, `doctor --chat`, and requests in files of all kinds."""

from __future__ import annotations

import json

import pytest
from chat_templates import PLAIN, with_template
from cli_helpers import refusal, saved
from typer.testing import CliRunner

from rome_fast import EditRequest, demo, load_records
from rome_fast.cli.app import app
from rome_fast.cli.common import EDIT_FAILED
from rome_fast.errors import RecordError

FACT = ["--prompt", "{} plays the", "--subject", "Ray Charles", "--target", "violin"]
SYSTEM = [{"role": "system", "content": "The weather was fine."}]
USER = {"role": "user", "content": "Ray Charles plays the"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model with a chat template, which it came without."""
    model, tok, _ = demo.load()
    return saved((model, with_template(tok, PLAIN)), tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(folder, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        "layers: [2]\nv_num_grad_steps: 20\ncontext_template_length_params: [[5, 4]]"
    )

    def invoke(command, *arguments, model=folder):
        words = [command, "--model", model, "--hparams", settings, "--second-moment", "identity"]
        words = [str(word) for word in (*words, *arguments)]
        return CliRunner().invoke(app, words, env={"COLUMNS": "200"})

    return invoke


def test_edit_in_a_chat_says_so_and_shows_both_forms(run):
    result = run("edit", *FACT, "--chat")
    assert result.exit_code == 0, result.output
    assert "edited: 'chat: Ray Charles plays the' -> 'violin'" in result.output
    assert "  without chat  0." in result.output


def test_doctor_looks_at_the_chat(run):
    result = run("doctor", *FACT, "--chat")
    assert result.exit_code == EDIT_FAILED  # the second moment is the identity, which it names
    assert "'chat: Ray Charles plays the' -> ' violin'" in result.output


def test_a_model_without_a_template_is_one_line(run):
    said = refusal(run("edit", *FACT, "--chat", model=demo.model_path()))
    assert said.startswith("rome-fast: ChatTemplateError: chat is asked for, and the tokenizer ")
    assert "set tok.chat_template, or edit the plain prompt without chat" in said


def test_files_may_hold_chats_and_the_option_is_for_the_others(run, tmp_path):
    requests, journal = tmp_path / "requests.json", tmp_path / "journal"
    plain = {"prompt": "{} was born in", "subject": "Albert Einstein", "target": "Rome"}
    chat = {"prompt": "{} plays the", "subject": "Ray Charles", "target": "violin", "chat": SYSTEM}
    requests.write_text(json.dumps([plain, chat]))
    result = run("edit", "--requests", requests, "--journal", journal, "--chat")
    assert "chat: Albert Einstein was born in" in result.output
    assert "chat after system: Ray Charles plays the" in result.output
    shown = CliRunner().invoke(app, ["log", str(journal)], env={"COLUMNS": "200"}).output
    assert "'chat: Albert Einstein was born in' -> 'Rome'" in shown
    assert "'chat after system: Ray Charles plays the' -> 'violin'" in shown


PLAIN_REQUEST = EditRequest("{} plays the", "Ray Charles", "violin")
CHAT_REQUEST = EditRequest("{} plays the", "Ray Charles", "violin", SYSTEM)
ROWS = {
    "chat": ({"prompt": "{} plays the", "subject": "Ray Charles", "chat": SYSTEM}, CHAT_REQUEST),
    "messages": ({"prompt": [*SYSTEM, USER], "subject": "Ray Charles"}, CHAT_REQUEST),
    "span": ({"prompt": "Ray Charles plays the", "span": [0, 11]}, PLAIN_REQUEST),
    "no chat": ({"prompt": "{} plays the", "subject": "Ray Charles", "chat": None}, PLAIN_REQUEST),
}


@pytest.mark.covering
@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("lines", [False, True])
def test_json_holds_requests_of_every_form(tmp_path, case, lines):
    row, expected = ROWS[case]
    text = json.dumps({**row, "target_new": "violin"})
    path = tmp_path / ("requests.jsonl" if lines else "requests.json")
    path.write_text(text if lines else f"[{text}]")
    assert [record.request for record in load_records(path)] == [expected]


def test_csv_holds_chats_and_spans_as_json(tmp_path):
    path = tmp_path / "requests.csv"
    system = json.dumps(SYSTEM).replace('"', '""')
    path.write_text(
        "prompt,subject,target,chat,span\n"
        f'{{}} plays the,Ray Charles,violin,"{system}",\n'
        "{} plays the,Ray Charles,violin,true,\n"
        '{} plays the,Ray Charles,violin,,\nRay Charles plays the,,violin,,"[0, 11]"\n'
    )
    in_chat = EditRequest("{} plays the", "Ray Charles", "violin", True)
    expected = [CHAT_REQUEST, in_chat, PLAIN_REQUEST, PLAIN_REQUEST]
    assert [record.request for record in load_records(path)] == expected


def test_a_bad_chat_in_a_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "requests.csv"
    path.write_text("prompt,subject,target,chat\n{} plays the,Ray Charles,violin,yes\n")
    with pytest.raises(RecordError, match=r"record 0 \(line 2\): column chat is not JSON"):
        load_records(path)
    path = tmp_path / "requests.json"
    path.write_text(json.dumps([{"prompt": "{} plays", "subject": "x", "target": "y", "chat": 3}]))
    with pytest.raises(RecordError, match="record 0: request chat must be True or a list of mess"):
        load_records(path)
