"""Import parts of somebody else's checkout without a trace in this process's modules.

Peers call their top-level packages ``rome``, ``util`` or ``easyeditor``. Each is imported under its
own names, kept by the adapter, and taken out of ``sys.modules`` again, so that two peers, or a
peer and the user's own ``util``, never meet. ``sys.path`` is not touched at all.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import transformers

from rome_fast.errors import InvalidArgumentError


def import_modules(
    peer: str,
    packages: Mapping[str, Path],
    stubs: Sequence[ModuleType],
    wanted: Sequence[str],
) -> list[ModuleType]:
    """The modules ``wanted``, found in the folders of ``packages``.

    Args:
        peer: name for messages.
        packages: dotted name -> folder. Their own ``__init__.py`` is not run: a peer's may import
            everything that the peer can do.
        stubs: modules that stand in for what an edit does not need, while importing.
        wanted: dotted names of the modules to return.

    Raises:
        InvalidArgumentError: a module that they import is not installed.
    """
    # Transformers loads these lazily; it must not do so while a stub of matplotlib is in place.
    transformers.AutoModelForCausalLM, transformers.AutoTokenizer  # noqa: B018
    names = {name.partition(".")[0] for name in (*packages, *(s.__name__ for s in stubs))}
    with _only_inside(names):
        for name, folder in packages.items():
            sys.modules[name] = _bare_package(name, folder)
        sys.modules.update({s.__name__: s for s in stubs})
        try:
            return [importlib.import_module(name) for name in wanted]
        except ImportError as error:
            missing = (error.name or str(error)).partition(".")[0]
            raise InvalidArgumentError(
                f"peer {peer!r} imports {missing!r}, which is not installed: "
                f"pip install {missing} ({error})"
            ) from error


def stub(name: str, **attributes: object) -> ModuleType:
    """An empty module of that name with these attributes."""
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


def require_files(peer: str, root: Path, files: Sequence[str], source: str) -> None:
    """Raise InvalidArgumentError unless the folder holds these files of the peer."""
    missing = [file for file in files if not (root / file).is_file()]
    if missing:
        raise InvalidArgumentError(
            f"peer {peer}={str(root)!r} is no checkout of {source}, it lacks {missing[0]}: "
            f"git clone https://github.com/{source} PATH, then {peer}=PATH"
        )


def commit_of(root: Path, folders: Sequence[str]) -> str | None:
    """Commit of a git checkout, with ``-dirty`` where one of its ``folders`` was changed.

    None where ``root`` is not the top of a checkout or there is no git.
    """
    try:
        top = _git(root, "rev-parse", "--show-toplevel").stdout.strip()
        head = _git(root, "rev-parse", "--short=12", "HEAD").stdout.strip()
        clean = _git(root, "diff", "--quiet", "HEAD", "--", *folders).returncode == 0
    except OSError:
        return None
    if not head or Path(top).resolve() != root.resolve():
        return None
    return head if clean else f"{head}-dirty"


def _git(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)


def _bare_package(name: str, folder: Path) -> ModuleType:
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return importlib.util.module_from_spec(spec)


@contextmanager
def _only_inside(names: set[str]) -> Iterator[None]:
    """Top-level ``names`` are free inside; afterwards they mean what they meant before."""

    def mine() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in names]

    before = {name: sys.modules.pop(name) for name in mine()}
    # A checkout stays as it is: no __pycache__ is left in it.
    writes_none = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_none
        for name in mine():
            del sys.modules[name]
        sys.modules.update(before)
