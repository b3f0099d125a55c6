"""Makes result files small: what was timed, on what, and how much it spread."""

import json
from pathlib import Path

import pytest

from rome_fast.bench.setting import setting

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--save-result", help="write benchmarks/results/<NAME>.json")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    name = session.config.getoption("--save-result")
    bench = getattr(session.config, "_benchmarksession", None)
    if not name or bench is None or not bench.benchmarks:
        return
    RESULTS.mkdir(exist_ok=True)
    report = {"setting": setting(), "results": [row(b) for b in bench.benchmarks]}
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
