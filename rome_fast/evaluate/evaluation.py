"""What ``evaluate`` returns: the data, and what can be done with it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rome_fast.atomic_files import write_text
from rome_fast.errors import InvalidArgumentError, MissingExtraError
from rome_fast.evaluate import readings
from rome_fast.evaluate.metrics import summarise
from rome_fast.evaluate.protocols import JUDGES, check_judge
from rome_fast.evaluate.result import EvaluationData

if TYPE_CHECKING:
    import pandas
    from rich.console import Group

    from rome_fast.evaluate.protocols import Verdict


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
        ``.csv`` a row a case; for ``.tex`` and ``.md`` the table of the metrics in LaTeX (booktabs)
        and in Markdown, each with what was done at its head.
        """
        # rich takes long to import
        from rome_fast.evaluate.report import as_csv, as_latex, as_markdown

        tables = {".csv": as_csv, ".tex": as_latex, ".md": as_markdown}
        write_text(path, tables.get(Path(path).suffix.lower(), _as_json)(self))

    def save_readings(self, path: str | Path) -> None:
        """Write every answer of a protocol that lets the model answer, a JSON object a line.

        With the verdict, ``right``, which may be changed by hand; ``from_readings`` makes the
        figures again. The first line says what was evaluated.
        """
        write_text(path, readings.written(self))

    @classmethod
    def from_readings(cls, path: str | Path, judge: Verdict | None = None) -> Evaluation:
        """The figures of the answers that ``save_readings`` wrote, without a model.

        Args:
            judge: whose verdicts are taken, as in ``evaluate``; None: those of the file, which
                people may have changed.

        Raises:
            InvalidArgumentError: the file cannot be read, or a line of it is bad; says which. Or
                the judge has raised, or has returned no bool.
        """
        setting, cases = readings.read(path)
        setting.pop("n_changed", None)  # of a file that was read before
        if judge is not None:
            check_judge(judge)
            cases = readings.judged(cases, judge)
            setting["judge"] = judge if isinstance(judge, str) else "own"
        elif setting.get("judge") in JUDGES:
            setting["n_changed"] = readings.n_changed(cases, setting["judge"])
        metrics = summarise(cases, setting.get("n_skipped", 0))
        return cls(setting=setting, metrics=metrics, cases=tuple(cases))

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
