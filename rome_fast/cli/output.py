"""Where ``stats collect`` writes, checked before hours are spent and safe until they are saved."""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rome_fast.cli.common import console
from rome_fast.errors import InvalidArgumentError
from rome_fast.moment.collect.checkpoint import Checkpoint
from rome_fast.moment.collect.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rome_fast.moment.second_moment import SecondMoment

SUFFIXES = (".safetensors", ".npz")


class Output:
    """One file per layer, and the checkpoint beside them.

    Args:
        out: a file for a single layer, where the suffix says so, else a folder.
        layers: those that will be written.
        ranks: of this process; the first writes the files, each has a checkpoint of its own.

    Attributes:
        checkpoint: the path to collect with (``Checkpoint`` adds the rank).

    Raises:
        InvalidArgumentError: several layers into one file.
    """

    def __init__(self, out: Path, layers: Sequence[int], ranks: Ranks) -> None:
        if out.suffix in SUFFIXES:
            if len(layers) > 1:
                raise InvalidArgumentError(
                    f"--out {out} is one file, for one layer; --layers names {len(layers)}: give "
                    "a folder"
                )
            self._files = {layers[0]: out}
        elif out.suffix and not out.is_dir():
            raise InvalidArgumentError(
                f"--out {out}: a file must end in {' or '.join(SUFFIXES)}, a folder has no suffix"
            )
        else:
            self._files = {layer: out / f"layer_{layer}.safetensors" for layer in layers}
        whole = Path(os.path.abspath(out))
        self.checkpoint = whole.with_name(f".{whole.name}.checkpoint")
        self._ranks = ranks

    @property
    def interrupted(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self._checkpoint_of(self._ranks).exists()

    def check(self, resume: bool) -> None:
        """Make the folders, and see that nothing will be in the way when all is collected.

        Raises:
            InvalidArgumentError: an output exists; so does a checkpoint that ``resume`` does not
                ask for, or one of another number of processes.
            OSError: the place cannot be written to.
        """
        ours = {
            self._checkpoint_of(Ranks(rank, self._ranks.size)) for rank in range(self._ranks.size)
        }
        pattern = f"{glob.escape(self.checkpoint.name)}*"
        found = set(self.checkpoint.parent.glob(pattern))
        if found and not resume:
            raise InvalidArgumentError(
                f"an interrupted collection left {min(found)}: go on from it with --resume, or "
                "delete it"
            )
        if foreign := found - ours:
            raise InvalidArgumentError(
                f"--resume: {min(foreign)} is of a run with another number of processes than "
                f"{self._ranks.size}: take that number again, or delete it"
            )
        for file in self._files.values():
            # A run that was killed while it wrote its files has a checkpoint still.
            if file.exists() and not found:
                raise InvalidArgumentError(f"--out {file} exists: choose another, or delete it")
            file.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.checkpoint.parent, file.parent):
            tempfile.TemporaryFile(dir=folder).close()

    def write(self, moments: dict[int, SecondMoment]) -> None:
        """Save the files, then delete the checkpoint; to be called by all ranks."""
        if self._ranks.rank == 0:
            for layer, moment in moments.items():
                moment.save(self._files[layer])
                say_saved(self._files[layer], moment)
        # Another rank's checkpoint must outlive a failure to save.
        self._ranks.wait()
        self._checkpoint_of(self._ranks).unlink(missing_ok=True)

    def _checkpoint_of(self, ranks: Ranks) -> Path:
        path = Checkpoint(self.checkpoint, {}, ranks).path
        assert path is not None
        return path


def check_new_file(out: Path) -> None:
    """Raise InvalidArgumentError unless ``out`` names a second-moment file that is not there."""
    if out.suffix not in SUFFIXES:
        raise InvalidArgumentError(f"the name of {out} must end in {' or '.join(SUFFIXES)}")
    if out.exists():
        raise InvalidArgumentError(f"{out} exists: choose another, or delete it")


def check_sample_size(out: Path, size: int | None) -> None:
    """Raise InvalidArgumentError unless ``size`` will do for a file of this name."""
    if size is not None and size < 1:
        raise InvalidArgumentError(f"--sample-size must be at least 1, got {size}")
    if size is None and out.suffix == ".npz":
        raise InvalidArgumentError(
            f"{out}: an .npz needs the number of texts that its reader asks for (mom2_n_samples "
            "of the hparams): give --sample-size to `collect` or `convert`"
        )


def set_sample_size(moment: SecondMoment, size: int | None) -> None:
    """Keep the number of texts that the reader of an .npz asks for."""
    if size is not None:
        moment.info["sample_size"] = size


def say_saved(path: Path, moment: SecondMoment) -> None:
    """Name a file just written and what it holds."""
    console.print(f"saved: {path}\n  {moment}", markup=False, soft_wrap=True)
