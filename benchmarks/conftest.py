"""Makes result files small: what was timed, on what, and how much it spread."""

import json

import pytest

from benchmarks.support.results import RESULTS
from rome_fast.bench.setting import setting

ROWS = pytest.StashKey[list]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--save-result", help="write benchmarks/results/<NAME>.json")
    parser.addoption(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="another implementation's checkout, as a further row of bench_edit.py; repeatable",
    )


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> list:
    """Rows of the results file for what pytest-benchmark cannot time: several things in turns."""
    return request.config.stash.setdefault(ROWS, [])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    name = session.config.getoption("--save-result")
    bench = getattr(session.config, "_benchmarksession", None)
    timed = [row(b) for b in bench.benchmarks] if bench is not None else []
    results = timed + session.config.stash.get(ROWS, [])
    if not name or not results:
        return
    RESULTS.mkdir(exist_ok=True)
    report = {"setting": setting(), "results": results}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


def row(bench) -> dict:
    stats = bench.stats
    return {
        "name": bench.name,
        "median_ms": round(stats.median * 1e3, 4),
        "iqr_ms": round(stats.iqr * 1e3, 4),
        "min_ms": round(stats.min * 1e3, 4),
        "rounds": stats.rounds,
        **bench.extra_info,
    }
