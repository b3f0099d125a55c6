"""The report's figures are the Evaluation's, texts are only texts, and a browser shows the page."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from io import StringIO

import pytest
from rich.console import Console

from rome_fast import EditRequest
from rome_fast.evaluate import Evaluation
from rome_fast.evaluate.metrics import summarise
from rome_fast.evaluate.result import CaseResult, Checkpoint, Stage

SCRIPT = "<script>document.title = 'broken'</script>"
SETTING = {
    "mode": "single",
    "model": {"name": "small", "weights": "c0ffee"},
    "weight_name": "layers.1.mlp.down_proj.weight",
    "hparams": {"variant": "exact", "layers": [1]},
    "second_moment": "identity",
    "notes": [],
}


def case(index, holds=1.0, error=None):
    """Its paraphrases hold where it does, and of its neighbours three in four."""
    before = {"ES": 0.0, "PS": 0.0, "NS": 1.0, "rewrite_prob": 0.015, "rewrite_exact": 0.0}
    after = {
        **{"ES": holds, "PS": holds, "NS": 0.75, "EM": 0.125, "rewrite_prob": 0.1 + 0.8 * holds},
        **{"rewrite_exact": holds, "rephrase_exact": holds, "neighborhood_unchanged": 0.75},
        **{"locality.near": 0.5, "ngram_entropy": 4.321},
    }
    return CaseResult(
        index=index,
        case_id=f"case-{index}",
        request=EditRequest("{} plays the", f"Player {index}", "violin"),
        generation_prompts=(f"Player {index} plays the",),
        stages={"before": Stage(before, (" piano",)), "after": Stage(after, (" violin 小提琴",))},
        update_norm=None if error else 1.0 + index,
        weight_norm=None if error else 100.0,
        error=error,
    )


def evaluation_of(cases, **more):
    return Evaluation(setting=SETTING, metrics=summarise(cases), cases=tuple(cases), **more)


@pytest.fixture
def single():
    return evaluation_of([case(0), case(1, holds=0.0), case(2), case(3)])


@pytest.fixture
def sequential():
    """Three stages, drift and retention; one case was refused."""
    cases = [case(0), case(1, holds=0.0), case(2, 0.0, "no such subject")]
    cases = [replace(c, stages={**c.stages, "edit_time": c.stages["after"]}) for c in cases]
    found = evaluation_of(
        cases,
        drift={"before": {"perplexity": 9.25, "kl": 0.0}, "after": {"perplexity": 10.5, "kl": 0.2}},
        retention=(Checkpoint(1, 1.0, 9.5, 0.1), Checkpoint(3, 0.25, 10.5, 0.2)),
    )
    return replace(found, setting={**SETTING, "mode": "sequential"})


def terminal(evaluation, width=80):
    console = Console(width=width, file=StringIO())
    console.print(evaluation)
    return console.file.getvalue()


class _Cells(HTMLParser):
    """The rows of a page's tables, each a list of the texts of its cells; and all tags."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.tags, self._in_cell = [], [], False
        self.feed(html)
        self.rows = [[" ".join(cell.split()) for cell in cells] for cells in self.rows]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def page(evaluation, tmp_path):
    path = tmp_path / "report.html"
    evaluation.save_html(path)
    return path.read_text(encoding="utf-8")


def row(parsed, name):
    [found] = [cells for cells in parsed.rows if cells and cells[0] == name]
    return found


def test_figures_of_the_table_are_those_of_the_evaluation(single):
    lines = [" ".join(line.split()) for line in terminal(single).splitlines()]
    # ES of 1, 0, 1, 1: mean 75 %, 1.96 * 0.5 / sqrt(4) = 49 %.
    assert "ES 0.0 ± 0.0 75.0 ± 49.0 +75.0 ± 49.0 4" in lines
    assert "NS 100.0 ± 0.0 75.0 ± 0.0 -25.0 ± 0.0 4" in lines
    assert "EM 0.125 ± 0.000 4" in lines
    assert "ngram_entropy 4.321 ± 0.000 4" in lines
    assert "locality.near 50.0 ± 0.0 4" in lines
    score = single.metrics["after"]["S"]
    assert score.mean == pytest.approx(0.75)
    half = f"{100 * (score.mean - score.low):.1f}"  # S before is 0, whoever is left out
    assert f"S 0.0 ± 0.0 75.0 ± {half} +75.0 ± {half} 4" in lines


def test_every_metric_is_in_table_and_page(sequential, tmp_path):
    parsed = _Cells(page(sequential, tmp_path))
    text = terminal(sequential)
    for name in {name for metrics in sequential.metrics.values() for name in metrics}:
        assert re.search(rf"^ +{re.escape(name)} ", text, re.MULTILINE), name
        assert row(parsed, name)


def test_figures_of_the_page_are_those_of_the_evaluation(single, tmp_path):
    parsed = _Cells(page(single, tmp_path))
    assert row(parsed, "ES")[2:] == ["0.0 ± 0.0 %", "75.0 ± 49.0 %", "+75.0 ± 49.0 %", "4"]
    assert row(parsed, "EM")[2:] == ["", "0.125 ± 0.000", "", "4"]
    assert row(parsed, "model.weights") == ["model.weights", "c0ffee"]
    assert row(parsed, "hparams.layers") == ["hparams.layers", "[1]"]
    shown = row(parsed, "case-0")
    assert shown[2:] == ["violin", "0.015 → 0.900", "100%", "75%", "1.0%"]
    assert shown[1] == "Player 0 plays the before piano after violin 小提琴"


def test_sequential_shows_its_stages_drift_and_retention(sequential, tmp_path):
    html = page(sequential, tmp_path)
    parsed = _Cells(html)
    stages = ["before", "after its edit", "after"]
    assert row(parsed, "metric")[2:] == [*stages, "after - before", "cases"]
    drift = [r for r in parsed.rows if "9.25" in r or "10.5" in r]
    assert drift == [["before", "9.25", "0"], ["after", "10.5", "0.2"]]
    titles = re.findall(r"<title>(.+?)</title></circle>", html)
    assert titles == ["1 edits: 100.0%", "3 edits: 25.0%"]
    text = terminal(sequential)
    assert re.search(r"edits made +1 +3\b", text) and re.search(r"still said, % +100 +25\b", text)
    assert re.search(r"perplexity +9\.25 +10\.5\b", text)


def test_refused_and_worst_cases_come_first(sequential, tmp_path):
    parsed = _Cells(page(sequential, tmp_path))
    ids = [r[0] for r in parsed.rows if r and r[0].startswith("case-")]
    assert ids == ["case-2", "case-1", "case-0"]
    assert "no such subject" in row(parsed, "case-2")[1]
    assert "1 refused" in terminal(sequential)


def test_what_was_not_edited_is_said_at_every_head_and_counted(single, tmp_path):
    unasked = CaseResult(4, 4, EditRequest("{} is", "He", "x"), (), {}, error="too long")
    refused = case(5, holds=0.0, error="no such subject")
    cases = (*single.cases, unasked, refused)
    setting = {**SETTING, "n_skipped": 2}
    found = Evaluation(setting=setting, metrics=summarise(cases, 2), cases=cases)
    said = "8 records: 4 edited, 1 refused, 1 not asked, 2 skipped, counted as failures"
    for name in ("table.md", "table.tex"):
        found.save(tmp_path / name)
        first = (tmp_path / name).read_text("utf-8").splitlines()[0]
        assert f"{said}; small, each alone; layers.1.mlp.down_proj.weight, exact" in first
    for shown in (page(found, tmp_path), " ".join(terminal(found).split())):
        assert said in shown
    # 3 of 8 hold; of neighbours, which 5 records have, nothing is known where none was asked.
    after = found.metrics["after"]
    assert (after["ES"].mean, after["ES"].n) == (3 / 8, 8)
    assert (after["NS"].mean, after["NS"].n) == (0.75, 5)
    assert "| `ES` | 0.0 ± 0.0 | 37.5 ± 35.9 | +37.5 ± 35.9 | 8 |" in (
        (tmp_path / "table.md").read_text("utf-8").splitlines()
    )


def test_the_change_is_paired_by_case(tmp_path):
    """Before differs much between cases, the change does not."""
    cases = [
        replace(c, stages={"before": Stage({"ES": x}), "after": Stage({"ES": x + 0.5})})
        for c, x in ((case(0), 0.0), (case(1), 0.5))
    ]
    found = evaluation_of(cases)
    lines = [" ".join(line.split()) for line in terminal(found).splitlines()]
    assert "ES 25.0 ± 49.0 75.0 ± 49.0 +50.0 ± 0.0 2" in lines
    found.save(tmp_path / "cases.csv")
    rows = (tmp_path / "cases.csv").read_text("utf-8").splitlines()
    assert rows[0].endswith("before.ES,after.ES,change.ES")
    assert [line.split(",")[-1] for line in rows[1:]] == ["0.5", "0.5"]


def test_names_of_groups_mean_nothing_to_markdown_and_latex(single, tmp_path):
    cases = [replace(c, stages={"after": Stage({"locality.50%_{a|b}": 0.5})}) for c in single.cases]
    found = evaluation_of(cases)
    found.save(tmp_path / "table.md")
    found.save(tmp_path / "table.tex")
    markdown, latex = ((tmp_path / f"table.{x}").read_text("utf-8") for x in ("md", "tex"))
    assert r"| `locality.50%_{a\|b}` | 50.0 ± 0.0 | 4 |" in markdown
    assert r"locality.50\%\_\{a|b\} & $50.0 \pm 0.0$ & $4$ \\" in latex


def test_bars_of_the_histogram_count_every_norm(single, tmp_path):
    counts = re.findall(r"<title>[^<]+: (\d+)</title></rect>", page(single, tmp_path))
    assert sum(map(int, counts)) == 4


def test_edits_beside_the_weight_have_no_norm_of_it(single, tmp_path):
    cases = [replace(case, update_norm=None, weight_norm=None) for case in single.cases]
    beside = replace(single, cases=tuple(cases), setting={**SETTING, "form": "neuron"})
    html, shown = page(beside, tmp_path), " ".join(terminal(beside).split())
    for text in (html, shown):
        assert "one neuron for each subject" in text
        assert "second moment identity" not in text
    assert ">norm<" not in html and 'class="bar"' not in html and "norm" not in shown
    assert ">norm<" in page(single, tmp_path) and "norm" in terminal(single)


def test_a_thousand_cases_fold_and_lose_none(tmp_path):
    html = page(evaluation_of([case(i, holds=float(i % 7 > 0)) for i in range(1000)]), tmp_path)
    unfolded, folded = html.split("<summary>975 more</summary>")
    assert unfolded.count(">case-") == 25 and folded.count(">case-") == 975
    assert "<details open" not in html


def hostile(evaluation):
    """Markup wherever a user's or a model's words go."""

    def spoilt(c):
        after = replace(c.stages["after"], generations=(SCRIPT,))
        return replace(
            c,
            case_id=SCRIPT,
            request=EditRequest("{} [bold]plays[/bold]", SCRIPT, SCRIPT),
            generation_prompts=(SCRIPT,),
            stages={**c.stages, "after": after},
            warnings=(SCRIPT,),
        )

    return replace(
        evaluation,
        setting={**evaluation.setting, "model": {"name": SCRIPT}},
        cases=tuple(map(spoilt, evaluation.cases)),
    )


def test_texts_are_only_texts(single, tmp_path):
    html = page(hostile(single), tmp_path)
    assert SCRIPT not in html and SCRIPT in unescape(html)
    assert "[bold]plays[/bold]" in "".join(terminal(hostile(single), width=300).split("\n"))


def test_the_page_asks_for_nothing(single, tmp_path):
    parsed = _Cells(page(hostile(single), tmp_path))
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "object"}
    assert not [a for _, a in parsed.tags if a.keys() & {"src", "href", "onclick", "onload"}]
    assert not re.search(r"@import|url\(", page(single, tmp_path))


def test_nothing_measured_still_makes_a_report(tmp_path):
    failed = CaseResult(0, 7, EditRequest("{} is", "He", "x"), (), {}, error="too long")
    nothing = evaluation_of([failed])
    assert "too long" in page(nothing, tmp_path)
    assert "too long" in terminal(nothing)


def test_the_widest_table_cuts_nothing_at_80_columns(sequential):
    long = {"portability.Logical_Generalization": 0.5, "NM": -0.123}
    cases = [
        replace(c, stages={s: Stage({**v.values, **long}) for s, v in c.stages.items()})
        for c in sequential.cases
    ]
    text = terminal(replace(sequential, metrics=summarise(cases)))
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert "-0.123 ± 0.000 -0.123 ± 0.000 -0.123 ± 0.000 3" in " ".join(text.split())


@pytest.mark.parametrize("name", ["single", "sequential"])
def test_a_browser_shows_the_page(request, tmp_path, name):
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no chromium or chrome on PATH")
    page(hostile(request.getfixturevalue(name)), tmp_path)
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", f"--user-data-dir={tmp_path / 'profile'}"]

    def browse(*more):
        url = (tmp_path / "report.html").as_uri()
        return subprocess.run(
            [browser, *flags, *more, url], capture_output=True, text=True, timeout=60, check=True
        ).stdout

    seen = browse("--dump-dom")
    assert "<title>Evaluation: " in seen, "a script that was only text has run"
    assert ("75.0 ± 49.0 %" if name == "single" else "after its edit") in seen
    assert ("<polyline" in seen) == (name == "sequential")
    browse(f"--screenshot={picture}", "--window-size=1200,900")
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 10_000
