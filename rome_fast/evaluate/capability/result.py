"""What ``measure_capability`` found, and what can be done with it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rome_fast.atomic_files import write_text
from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.capability.scores import TaskDifference, TaskScore, differences

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "rome_fast.capability.1"

# Of the table as plain text.
_WIDTH = 100


@dataclass(frozen=True)
class Capability:
    """How well a model does tasks of lm-evaluation-harness.

    Attributes:
        setting: everything that the numbers depend on besides the model: the tasks as they were
            asked for, their versions and numbers of examples in the prompt, limit, batch size,
            seeds, and the version of lm-evaluation-harness.
        tasks: task -> metric -> TaskScore; a group of tasks is there beside its tasks.
    """

    setting: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, TaskScore]]

    def compare(self, before: Capability) -> dict[str, dict[str, TaskDifference]]:
        """Task -> metric -> this one minus ``before``, paired by sample.

        Raises:
            InvalidArgumentError: they have no metric of a task in common.
        """
        found = differences(before.tasks, self.tasks)
        if not found:
            raise InvalidArgumentError(
                f"before has the tasks {', '.join(before.tasks)}, and none of "
                f"{', '.join(self.tasks)}: measure the same tasks on both models"
            )
        return found

    def save(self, path: str | Path) -> None:
        """Write all of it as one JSON file, atomically; ``load`` reads it."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1)
        write_text(path, text)

    @classmethod
    def load(cls, path: str | Path) -> Capability:
        """Read what ``save`` wrote.

        Raises:
            InvalidArgumentError: there is no such file, or it holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidArgumentError(
                f"capability {str(path)!r} cannot be read: {error}"
            ) from error
        if not isinstance(fields, Mapping) or fields.get("format") != FORMAT:
            raise InvalidArgumentError(
                f"capability {str(path)!r} must have format {FORMAT!r}: it is another file"
            )
        return cls.from_json(fields)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Capability:
        """The one that ``dataclasses.asdict`` has made ``fields`` of."""
        tasks = {
            task: {name: TaskScore(**score) for name, score in metrics.items()}
            for task, metrics in fields["tasks"].items()
        }
        return cls(fields["setting"], tasks)

    def __str__(self) -> str:
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=_WIDTH, color_system=None).print(self)
        return file.getvalue().rstrip()

    def __repr__(self) -> str:
        return f"<Capability: {', '.join(self.tasks)}>"

    def __rich__(self) -> Table:
        from rome_fast.evaluate.capability.table import table

        return table({"value": self.tasks})
