"""Texts in any form -> documents of token ids, one after the other, nothing held in memory.

A text is a string, token ids, or a row of a data set with a text column; texts come as any
iterable, or as a text file with one text a line.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rome_fast.errors import InvalidArgumentError
from rome_fast.prompt.ids import all_text_ids
from rome_fast.text_files import not_utf8

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts per call of the tokenizer: enough to keep its threads busy, without reading a stream far
# ahead.
_CHUNK = 64


class Corpus:
    """Documents of token ids; every iteration starts at the beginning of the texts.

    Args:
        texts: the path of a text file, or an iterable of strings, of lists (or tensors) of token
            ids, or of mappings with either under ``text_column``.
        vocabulary: how many ids the model knows.

    Attributes:
        fraction_read: share of the texts read so far, or None where their number is not known.
    """

    def __init__(
        self,
        texts: object,
        tok: PreTrainedTokenizerBase,
        vocabulary: int,
        text_column: str = "text",
    ) -> None:
        if isinstance(texts, str | os.PathLike):
            if not Path(texts).is_file():
                raise InvalidArgumentError(
                    f"texts: there is no file {str(texts)!r}; for one text, pass a list of it"
                )
        elif isinstance(texts, Mapping):
            raise InvalidArgumentError(
                f"texts is a mapping with keys {', '.join(map(repr, texts))}: pass one of its "
                "values (a data set without split= is such a mapping)"
            )
        elif not isinstance(texts, Iterable):
            raise InvalidArgumentError(
                "texts must be a file or an iterable of strings, token ids or rows of a data "
                f"set, got {type(texts).__name__}"
            )
        self.texts = texts
        self.fraction_read: float | None = None
        self._tok = tok
        self._vocabulary = vocabulary
        self._column = text_column

    @property
    def name(self) -> str:
        """What the texts are called in results and files."""
        if isinstance(self.texts, str | os.PathLike):
            return Path(self.texts).name
        # What the `datasets` library knows of a data set.
        known = getattr(getattr(self.texts, "info", None), "dataset_name", None)
        return f"data set {known}" if known else "texts given by the caller"

    def __iter__(self) -> Iterator[list[int]]:
        """Documents that hold at least one token.

        Raises:
            InvalidArgumentError: a text is of no known kind, or an id is out of range; its index
                is named.
        """
        items = enumerate(self._items())
        while chunk := list(islice(items, _CHUNK)):
            for index, ids in self._tokenized(chunk):
                unknown = [i for i in ids if not 0 <= i < self._vocabulary]
                if unknown:
                    raise InvalidArgumentError(
                        f"texts[{index}] holds token id {unknown[0]}, but the model knows "
                        f"0 to {self._vocabulary - 1}"
                    )
                if ids:
                    yield ids

    def _items(self) -> Iterator[Any]:
        """The texts one by one, keeping count of how far they are read."""
        self.fraction_read = None
        if isinstance(self.texts, str | os.PathLike):
            yield from self._lines(Path(self.texts))
            return
        assert isinstance(self.texts, Iterable)
        total = len(self.texts) if isinstance(self.texts, Sized) else None
        for index, item in enumerate(self.texts):
            if total:
                self.fraction_read = (index + 1) / total
            yield item

    def _lines(self, path: Path) -> Iterator[str]:
        size, read = path.stat().st_size, 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                read += len(line)
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                self.fraction_read = read / size
                try:
                    yield line.decode("utf-8").strip()
                except UnicodeDecodeError as error:
                    raise InvalidArgumentError(
                        f"texts: {str(path)!r}, line {number}, {not_utf8(path, error)}"
                    ) from error

    def _tokenized(self, chunk: list[tuple[int, Any]]) -> Iterator[tuple[int, list[int]]]:
        """(index, ids) in order; all strings of the chunk go through the tokenizer in one call."""
        texts = [(index, self._column_of(index, item)) for index, item in chunk]
        strings = [text for _, text in texts if isinstance(text, str) and text]
        tokenized = iter(all_text_ids(self._tok, strings))
        for index, text in texts:
            if not isinstance(text, str):
                yield index, _as_ids(index, text)
            elif text:
                yield index, next(tokenized)

    def _column_of(self, index: int, item: Any) -> Any:
        if not isinstance(item, Mapping):
            return item
        if self._column not in item:
            columns = ", ".join(map(str, item))
            raise InvalidArgumentError(
                f"texts[{index}] has no column {self._column!r}; its columns are {columns}: name "
                "one with text_column="
            )
        return item[self._column]


def _as_ids(index: int, item: Any) -> list[int]:
    if isinstance(item, np.ndarray) and item.dtype.kind in "iu":
        item = torch.from_numpy(item.astype(np.int64))
    if isinstance(item, torch.Tensor) and item.dim() == 1 and not item.is_floating_point():
        return [int(i) for i in item]
    if isinstance(item, list | tuple) and all(type(i) is int for i in item):
        return list(item)
    raise InvalidArgumentError(
        f"texts[{index}] must be a string, a list of token ids or a row of a data set, got "
        f"{type(item).__name__}: {item!r:.80}"
    )
