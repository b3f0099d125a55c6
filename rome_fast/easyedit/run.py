"""One call of BaseEditor: edit its requests and measure them, in EasyEdit's order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.easyedit.metrics import compare_locality, measure
from rome_fast.errors import EditWarning, warn
from rome_fast.timings import Timings, progress_bar
from rome_fast.types import EditRequest, EditResult

if TYPE_CHECKING:
    from rome_fast.editor import Editor

Metrics = list[dict[str, Any]]


class Run:
    """The requests of one call, on an opened editor."""

    def __init__(
        self, engine: Editor, requests: list[dict[str, Any]], generate: bool, verbose: bool
    ) -> None:
        self.engine, self.requests = engine, requests
        self.generate, self.verbose = generate, verbose
        self.parsed = [EditRequest.parse(request) for request in requests]
        self.metrics: Metrics = []
        self.results: list[EditResult] = []

    def measure_before(self, given: Metrics | None, file: str | Path | None) -> None:
        before = given or [{"pre": m} for m in self._measure(range(len(self.requests)))]
        if file is not None:
            Path(file).write_text(json.dumps(before, indent=4, ensure_ascii=False), "utf-8")
        self.metrics = [
            {"pre": item["pre"], "case_id": i, "requested_rewrite": request, "post": {}}
            for i, (item, request) in enumerate(zip(before, self.requests, strict=True))
        ]

    def edit_and_measure(self) -> None:
        """Edit one after the other; measure each on the model with those before it."""
        for i in self._progress("edits"):
            self.results.append(self._edit(i))
            self._measure_after(i)

    def measure_alone(self) -> None:
        """Measure each edit alone on the model as it was; every edit is undone."""
        notes = list(self.engine.notes)
        for i in self._progress("each edit alone"):
            self._edit(i)
            self._measure_after(i)
            self.engine.history.rewind(0)
        self.engine.notes = notes

    def edit_all(self) -> None:
        self.results = [self._edit(i) for i in self._progress("edits")]

    def tell(self, sequential: bool) -> None:
        """Issue the warnings of the results, and print a line per edit."""
        for text in (text for result in self.results for text in result.warnings):
            warn(text, EditWarning)
        if not sequential and len(self.requests) > 1:
            warn(
                f"sequential_edit=False: the metrics are of each edit alone, and the returned "
                f"model carries all {len(self.requests)}; sequential_edit=True measures them as "
                "they add up",
                EditWarning,
            )
        for result, metrics in zip(self.results, self.metrics, strict=True):
            if self.verbose:
                print(_line(result, metrics))

    def _edit(self, i: int) -> EditResult:
        # What was measured since the last edit is not part of the time of this one.
        self.engine.timings = Timings()
        return self.engine.edit([self.parsed[i]], strict=False)[0]

    def _measure(self, which: Sequence[int]) -> Metrics:
        requests = [self.requests[i] for i in which]
        return measure(self.engine.model, self.engine.tok, requests, self.generate)

    def _measure_after(self, i: int) -> None:
        metrics, (post,) = self.metrics[i], self._measure([i])
        compare_locality(metrics["pre"], post)
        metrics["post"] = post

    def _progress(self, what: str) -> Any:
        show = self.verbose and len(self.requests) > 1
        return progress_bar(range(len(self.requests)), show=show, desc=what, unit="edit")


def _line(result: EditResult, metrics: dict[str, Any]) -> str:
    (pre,), (post,) = (metrics[when]["rewrite_acc"] for when in ("pre", "post"))
    return (
        f"{metrics['case_id']}: {result.request}: "
        f"rewrite_acc {pre:.2f} -> {post:.2f}, probability {result.prob_before:.4f} -> "
        f"{result.prob_after:.4f}, second moment {result.second_moment}"
    )
