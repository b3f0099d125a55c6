"""`rome-fast doctor`: what it says, its exit code, and that nothing is kept."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rome_fast import demo
from rome_fast.cli.app import app
from rome_fast.cli.common import BAD_INPUT, EDIT_FAILED

FACT = ["--prompt", "{} plays the", "--subject", "Ray Charles", "--second-moment", "identity"]


@pytest.fixture
def doctor(tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        "layers: [2]\nv_num_grad_steps: 4\ncontext_template_length_params: [[5, 4]]"
    )
    words = ["doctor", "--model", str(demo.model_path()), "--hparams", str(settings)]

    def run(*arguments):
        return CliRunner().invoke(app, [*words, *arguments], env={"COLUMNS": "200"})

    return run


def test_causes_are_listed_with_their_remedies(doctor):
    result = doctor(*FACT, "--target", "violin")
    assert result.exit_code == EDIT_FAILED
    assert "1. the search for the value ended at a loss of" in result.output
    assert "try   v_num_grad_steps=8" in result.output
    assert "the second moment is the identity" in result.output


def test_bad_input_is_one_line(doctor):
    result = doctor("--prompt", "He plays the", "--subject", "Ray Charles", "--target", "violin")
    assert result.exit_code == BAD_INPUT
    assert result.stderr.startswith("rome-fast: SubjectNotFoundError: subject 'Ray Charles'")
