"""GGUF files (llama.cpp): dequantised once into an ordinary checkpoint of the cache.

transformers reads the file, and takes far longer for it than for a checkpoint. The weights
are those that quantisation has rounded: an edit of them is not one of the original model.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rome_fast.cache import cache_dir
from rome_fast.errors import ModelFileError
from rome_fast.model.memory import format_bytes
from rome_fast.timings import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAGIC = b"GGUF"
_SOURCE = "rome_fast.json"
_ENCODERS = ("bert", "nomic-bert", "jina-bert-v2", "t5encoder", "t5", "umt5")
# A checkpoint that was made by another version of this file is made again.
_FORMAT = 1


def load_gguf(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    sha256: str | None = None,
    instead: Callable[[], str] = str,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a GGUF file of a dense decoder, on the CPU, in ``dtype``.

    The checkpoint that it is turned into stays in the cache (``rome_fast.cache.cache_dir``), under
    the hash of the file.

    Args:
        sha256: of the file, where it has to be a certain one.
        instead: what to say where it is another.

    Raises:
        ModelFileError: there is no such file, it is damaged, an encoder, or of a family or
            quantisation that transformers or the ``gguf`` package do not read, or there is no room
            for the checkpoint; nothing is left of an attempt.
    """
    path = Path(path)
    found = _sha256_of_gguf(path)
    if sha256 not in (None, found):
        raise ModelFileError(instead())
    source = {"format": _FORMAT, "file": path.name, "sha256": found}
    folder = cache_dir() / "checkpoints" / f"{path.stem}-{found[:12]}-{_name(dtype)}"
    if not _is_whole(folder, source):
        _convert(path, folder, source, dtype)
    return _load(folder, dtype)


def _sha256_of_gguf(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ModelFileError(f"model {str(path)!r} is not a GGUF file, or it is damaged")
            file.seek(0)
            return _sha256(file)
    except OSError as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"model {str(path)!r} cannot be read: {error}") from error


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(2**24):
        digest.update(block)
    return digest.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_whole(folder: Path, source: dict[str, Any]) -> bool:
    """Whether the checkpoint is there, of this file, and as it was written; else it is removed."""
    try:
        written = json.loads((folder / _SOURCE).read_text(encoding="utf-8"))
        whole = {k: written[k] for k in source} == source and written["files"] == _hashes(folder)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole and folder.exists():
        shutil.rmtree(folder)
    return whole


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a checkpoint, by name."""
    hashes = {}
    for file in sorted(folder.iterdir()):
        if file.name != _SOURCE:
            with file.open("rb") as opened:
                hashes[file.name] = _sha256(opened)
    return hashes


def _convert(path: Path, folder: Path, source: dict[str, Any], dtype: torch.dtype) -> None:
    """Write the checkpoint of a GGUF file, whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_room(path, folder.parent, dtype)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
            _write_checkpoint(path, Path(partial), dtype)
            said = {**source, "files": _hashes(Path(partial))}
            (Path(partial) / _SOURCE).write_text(json.dumps(said, indent=1), encoding="utf-8")
            Path(partial).chmod(0o755)
            # Another process may have been faster: its checkpoint is the same.
            try:
                Path(partial).rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
            Path(partial).mkdir(exist_ok=True)  # which is removed now
    except OSError as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            f"the checkpoint of {path.name} cannot be written: {error}; set ROME_FAST_CACHE to a "
            "folder with room"
        ) from error


def _check_room(path: Path, folder: Path, dtype: torch.dtype) -> None:
    """Raise before any work where the disk is too small.

    Four bits and a scale are the least that common quantisations keep of a weight.
    """
    needed = int(path.stat().st_size * 8 / 4.5 * dtype.itemsize)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelFileError(
            f"the checkpoint of {path.name} takes up to {format_bytes(needed)}, and {folder} has "
            f"room for {format_bytes(free)}: set ROME_FAST_CACHE to a larger disk"
        )


def _write_checkpoint(path: Path, folder: Path, dtype: torch.dtype) -> None:
    from transformers import AutoConfig, AutoTokenizer

    title = f"{path.name}: dequantised, once"
    with progress_bar(show=True, total=3, desc=title, unit="step", leave=False) as bar:
        with _quiet(), _typed_errors(path), _parsed_once(path):
            config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
            tok = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, config=config)
            bar.update()
            model = _dequantised(path, config, dtype)
            bar.update()
            model.save_pretrained(folder)
            tok.save_pretrained(folder)
            bar.update()


@contextlib.contextmanager
def _parsed_once(path: Path) -> Iterator[None]:
    """While open, a file is parsed once, and the names of its tensors are mapped once.

    transformers does the first for every part that it reads and the second for every module, which
    is most of the time of a conversion.
    """
    try:
        import accelerate  # noqa: F401  # transformers asks for it
        import gguf
    except ImportError as error:
        raise ModelFileError(
            f"model {str(path)!r} is a GGUF file: pip install --no-deps gguf accelerate"
        ) from error
    before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in before.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(gguf, name, function)


def _dequantised(path: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model, as one that was never quantised: transformers would refuse to save it."""
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=dtype
    )
    fields = read.config.to_dict()
    fields.pop("quantization_config", None)
    fields["architectures"] = [type(read).__name__]
    with torch.device("meta"):
        model: PreTrainedModel = type(read)(type(read.config)(**fields))
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model


@contextlib.contextmanager
def _typed_errors(path: Path) -> Iterator[None]:
    """Whatever transformers and gguf raise for a file that they cannot read, in one type."""
    try:
        yield
    except ModelFileError:
        raise
    except (
        *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError),
        *(NotImplementedError, RuntimeError, OverflowError, MemoryError, struct.error),
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the file
        said = " ".join(str(error).split())[:300]
        architecture = _architecture(path)
        if architecture in _ENCODERS:
            raise ModelFileError(
                f"model {str(path)!r} is an encoder ({architecture}): ROME edits decoders"
            ) from error
        raise ModelFileError(
            f"model {str(path)!r} ({architecture or 'no architecture'}) cannot be read: damaged, "
            f"or of a family or quantisation that transformers does not read ({said})"
        ) from error


def _architecture(path: Path) -> str | None:
    """``general.architecture``, which is the first field of the files of llama.cpp."""
    with path.open("rb") as file:
        head = file.read(4096)
    key = b"general.architecture"
    at = head.find(key)
    if at < 0:
        return None
    at += len(key) + 4  # a type
    (length,) = struct.unpack_from("<Q", head, at)
    return head[at + 8 : at + 8 + min(length, 64)].decode("utf-8", "replace")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and the notices of a conversion."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        # Its bar over the tensors does not ask whether bars are wanted.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _load(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        tok = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tok
