"""How an evaluation prints: a table, at any width, and a line where Python shows its repr."""

import csv
import sys

import pytest
from rich.console import Console

import rome_fast
from rome_fast import demo
from rome_fast.errors import MissingExtraError


@pytest.fixture(scope="module")
def evaluation():
    model, tok, facts = demo.load()
    hparams = rome_fast.RomeHparams.for_model(model).replace(
        v_num_grad_steps=2, context_template_length_params=()
    )
    records = [
        {
            "prompt": fact.prompt,
            "subject": fact.subject,
            "target_new": fact.target_new,
            "neighborhood": [vars(near) for near in fact.neighborhood_prompts][:2],
        }
        for fact in facts[:300:150]
    ]
    return rome_fast.evaluate(
        *(model, tok, records, "single", hparams),
        second_moment="identity",
        progress=False,
        generate_tokens=0,
    )


def test_print_shows_the_table(evaluation):
    text = str(evaluation)
    assert "rewrite_prob" in text and "worst cases" in text
    assert max(map(len, text.splitlines())) <= 100
    assert repr(evaluation) == "<Evaluation, single: 2 cases, 0 without an edit>"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_word_of_a_case_is_cut(evaluation, width):
    console = Console(width=width, color_system=None)
    with console.capture() as found:
        console.print(evaluation)
    lines = found.get().splitlines()
    assert max(map(len, lines)) <= width
    cases = lines[lines.index("worst cases") + 1 :] if "worst cases" in lines else lines
    told = " ".join(" ".join(line.split("0.")[0].split()) for line in cases)
    for case in evaluation.cases:
        assert max(case.request.subject.split(), key=len) in told


def test_cases_as_a_frame_and_as_csv(evaluation, tmp_path):
    frame = evaluation.to_frame()
    assert list(frame["subject"]) == [case.request.subject for case in evaluation.cases]
    mean = evaluation.metrics["after"]["rewrite_prob"].mean
    assert frame["after.rewrite_prob"].mean() == pytest.approx(mean)
    evaluation.save(tmp_path / "cases.csv")
    with (tmp_path / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(frame)
    assert [float(row["after.rewrite_prob"]) for row in rows] == list(frame["after.rewrite_prob"])


def test_metrics_as_latex(evaluation, tmp_path):
    evaluation.save(tmp_path / "table.tex")
    text = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert text.startswith("% 2 records: 2 edited; ") and text.endswith("\\end{tabular}\n")
    assert "\n\\begin{tabular}{lrrrr}\n" in text
    [row] = [line for line in text.splitlines() if line.startswith(r"rewrite\_prob ")]
    assert row.count("&") == 4 and row.endswith(r"& $2$ \\") and r"\pm" in row


def test_pandas_is_named_where_it_is_missing(evaluation, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas, or save"):
        evaluation.to_frame()
