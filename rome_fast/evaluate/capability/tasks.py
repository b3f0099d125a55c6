"""Tasks of lm-evaluation-harness, by name or from local files, ready to be asked."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rome_fast.errors import CapabilityError, InvalidArgumentError, MissingExtraError


def checked_names(tasks: str | Path | Sequence[str | Path]) -> list[str]:
    """The tasks that are asked for, as a list.

    Raises:
        InvalidArgumentError: there is none, or one is no text.
    """
    names = [tasks] if isinstance(tasks, str | Path) else list(tasks)
    if not names or not all(isinstance(name, str | Path) and str(name).strip() for name in names):
        raise InvalidArgumentError(
            f"tasks must be names of lm-evaluation-harness's tasks or paths of YAML files, got "
            f"{tasks!r:.80}"
        )
    # A Path without a folder would read as a name.
    return [os.path.join(".", name) if isinstance(name, Path) else name for name in names]


def load_tasks(manager_type: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Fetch everything that the tasks need: no measurement of them goes to the network again.

    Args:
        manager_type: of ``task_manager_type``.
        names: of tasks, groups or tags; or paths, which have a separator or end in .yaml: a file of
            a task or group, or a folder, of which all are meant.

    Returns:
        "tasks" and "groups": name -> lm-evaluation-harness's own objects.

    Raises:
        InvalidArgumentError: there is no such task, file or folder.
        CapabilityError: one cannot be read, or its data cannot be fetched.
    """
    paths = [Path(name).expanduser() for name in names if _is_path(name)]
    for path in paths:
        if not path.exists():
            raise InvalidArgumentError(f"tasks: there is no file or folder {str(path)!r}")
    folders = [path for path in paths if path.is_dir()]
    # The index of all published tasks takes seconds: only where a name may be in it.
    needs_index = len(paths) < len(names) or any(map(_has_group, paths))
    manager = manager_type(include_path=folders, include_defaults=needs_index)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name in names:
        for spec in _specs(manager, name):
            try:
                loaded = manager.load([spec])
            # Whatever reads the data raises what it likes.
            except Exception as error:
                raise CapabilityError(
                    f"task {spec!r} cannot be read or its data cannot be fetched: "
                    f"{type(error).__name__}: {error}"
                ) from error
            tasks |= loaded["tasks"]
            groups |= loaded["groups"]
    return {"tasks": tasks, "groups": groups}


def task_manager_type() -> Any:
    """lm-evaluation-harness's TaskManager.

    Raises:
        MissingExtraError: it is not installed, or too old.
    """
    remedy = "pip install 'rome-fast[capability]'"
    try:
        import lm_eval.models.huggingface
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError(
            f"capability needs lm-evaluation-harness ({error}): {remedy}"
        ) from error
    if not hasattr(TaskManager, "load"):
        raise MissingExtraError(f"lm-evaluation-harness {lm_eval.__version__} is too old: {remedy}")
    return TaskManager


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or any(mark in name for mark in ("/", os.sep))


def _has_group(path: Path) -> bool:
    """Whether it is, or holds, a group of tasks, which may be among the published ones."""
    files = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
    return any(
        line.startswith("group:")
        for file in files
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
    )


def _specs(manager: Any, name: str) -> Iterator[str]:
    """What the manager calls it; of a folder, each of its tasks and groups."""
    if not _is_path(name):
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            meant = f" (near it: {', '.join(near)})" if near else ""
            raise InvalidArgumentError(
                f"tasks: lm-evaluation-harness has no task {name!r}{meant}: `lm-eval ls tasks` "
                "lists them; a file of your own ends in .yaml"
            )
        yield name
        return
    path = Path(name).expanduser()
    if path.is_file():
        yield str(path)
        return
    found = [
        task
        for task, entry in manager.task_index.items()
        if entry.yaml_path is not None and path in entry.yaml_path.parents
    ]
    if not found:
        raise InvalidArgumentError(
            f"tasks: the folder {str(path)!r} holds no task, as a .yaml file"
        )
    yield from found
