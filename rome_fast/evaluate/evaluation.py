"""What ``evaluate`` returns: the data, and what can be done with it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rome_fast.atomic_files import write_text
from rome_fast.errors import InvalidArgumentError, MissingExtraError
from rome_fast.evaluate.result import EvaluationData

if TYPE_CHECKING:
    import pandas
    from rich.console import Group


# Of the tables as plain text.
_WIDTH = 100


class Evaluation(EvaluationData):
    """What ``evaluate`` returns.

    Attributes:
        setting: every argument and version that the numbers depend on, JSON-able.
        metrics: stage -> name -> Metric. Single mode has the stages "before" and "after",
            sequential mode "before", "edit_time" (each case right after its edit) and "after"
            (all cases at the end).
        cases: in the order of the records.
        drift: stage ("before", "after") -> {"perplexity", "kl"} on the held texts; in single mode
            "after" is the mean over the cases. Empty without texts.
        retention: in sequential mode, at some numbers of edits, the last one after all of them.
        seconds: wall-clock time by phase.
        capability: stage ("before", "after") -> what lm-evaluation-harness measured; empty where
            it was not asked to.
    """

    def save(self, path: str | Path) -> None:
        """Write it as one file, atomically.

        What is written follows from the name: all of it as JSON, which ``load`` reads; for
        ``.csv`` a row a case; for ``.tex`` the table of the metrics in LaTeX (booktabs).
        """
        from rome_fast.evaluate.report import as_csv, as_latex  # rich takes long to import

        made = {".csv": as_csv, ".tex": as_latex}.get(Path(path).suffix.lower(), _as_json)
        write_text(path, made(self))

    def save_readings(self, path: str | Path) -> None:
        """Write every answer of a protocol that lets the model answer, a JSON object a line.

        With the verdict, so that the figures can be made again, or judged by others, without a
        model.
        """
        lines = [
            {"case_id": case.case_id, "stage": name, **asdict(reading)}
            for case in self.cases
            for name, stage in case.stages.items()
            for reading in stage.readings
        ]
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def to_frame(self) -> pandas.DataFrame:
        """A pandas DataFrame: a row a case, a column for each value under ``stage.name``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        from rome_fast.evaluate.report import case_rows

        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError(
                "to_frame() needs pandas: pip install pandas, or save('cases.csv')"
            ) from error
        return pandas.DataFrame(case_rows(self))

    def save_html(self, path: str | Path) -> None:
        """Write it as one HTML page that needs no network and no scripts, atomically."""
        from rome_fast.evaluate.report import write_page  # jinja2 and rich take long to import

        write_page(self, path)

    def __str__(self) -> str:
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=_WIDTH, color_system=None).print(self)
        return file.getvalue().rstrip()

    def __repr__(self) -> str:
        mode, n_failed = self.setting["mode"], len(self.failed)
        return f"<Evaluation, {mode}: {len(self.cases)} cases, {n_failed} without an edit>"

    def __rich__(self) -> Group:
        from rome_fast.evaluate.report import tables

        return tables(self)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what ``save`` wrote.

        Raises:
            InvalidArgumentError: there is no such file, or it holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(
                f"evaluation {str(path)!r} cannot be read: {error}"
            ) from error
        return cls.from_json(fields)


def _as_json(evaluation: EvaluationData) -> str:
    return json.dumps(evaluation.to_json(), ensure_ascii=False, indent=1)
