"""What enters the MLP of one layer: the statistics of ordinary text there, collected once.

h is what enters the MLP, S = E[h h^T]. c is the direction with c.h = 1 on every token: least
squares over ordinary text, c = S^-1 E[h]. It stands for the bias that most gated MLPs lack.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import torch

from rome_fast.atomic_files import write_whole
from rome_fast.cache import cache_dir
from rome_fast.errors import SecondMomentError
from rome_fast.model.spec import DownProjection, ModelSpec, embedding_rows, max_positions
from rome_fast.model.structure import is_conv1d
from rome_fast.moment.collect.corpus import Corpus
from rome_fast.moment.collect.forward import KeyReader
from rome_fast.moment.collect.ordinary import LENGTH, ORDINARY_TEXT, text_hash
from rome_fast.moment.collect.packing import Row, pack_rows
from rome_fast.moment.collect.progress import Progress
from rome_fast.moment.provenance import provenance
from rome_fast.moment.second_moment import SecondMoment

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from rome_fast.model.units import HiddenUnits

# Tokens a dimension of h. With 4, c.h on held text is 1 +- .035; with 32, 1 +- .027.
TOKENS_PER_DIM = 32
# Tokens of them that thresholds are compared with.
N_SAMPLE = 2048
_ROWS_AT_ONCE = 4


@dataclass(frozen=True, eq=False)
class Entry:
    """Statistics of what enters an MLP; float32, so that files hold what is computed with.

    Attributes:
        moment: S with its ridge, [d_model, d_model].
        constant: c, [d_model].
        sample: h of some tokens of the text, [n, d_model].
    """

    moment: Tensor
    constant: Tensor
    sample: Tensor

    @classmethod
    def of(cls, augmented: SecondMoment, sample: Tensor) -> Entry:
        """From the second moment of [h; 1], [d_model + 1, d_model + 1].

        Raises:
            SecondMomentError: fewer tokens than d_model.
        """
        d_model = augmented.d_key - 1
        if augmented.count < d_model:
            raise SecondMomentError(
                f"{augmented.count} tokens are too few for directions of d_model {d_model}: "
                "collect one a dimension or more"
            )
        whole = augmented.moment().double().cpu()
        moment, mean = whole[:d_model, :d_model].clone(), whole[:d_model, d_model]
        moment.diagonal().add_(augmented.ridge() * moment.diagonal().mean())
        constant = torch.cholesky_solve(mean[:, None], torch.linalg.cholesky(moment))[:, 0]
        return cls(moment.float(), constant.float(), sample.float().cpu())

    @cached_property
    def factor(self) -> Tensor:
        """Lower Cholesky factor of S, float64."""
        return torch.linalg.cholesky(self.moment.double())

    def equals(self, other: Entry) -> bool:
        """Whether it is the same, to the bit."""
        theirs = other.tensors()
        return all(torch.equal(tensor, theirs[name]) for name, tensor in self.tensors().items())

    def tensors(self) -> dict[str, Tensor]:
        """What files hold of it."""
        return {"moment": self.moment, "constant": self.constant, "sample": self.sample}


def ordinary_entry(spec: ModelSpec, tok: PreTrainedTokenizerBase, units: HiddenUnits) -> Entry:
    """The statistics of the package's ordinary text at one layer; cached.

    Raises:
        SecondMomentError: the cached file is damaged; the message names it.
    """
    read = [TOKENS_PER_DIM, LENGTH, N_SAMPLE, text_hash()]
    key = json.dumps([provenance(spec, tok, units.projection), *read], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()
    path = cache_dir() / "entries" / f"{digest[:32]}.safetensors"
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    if path.exists():
        try:
            return Entry(**load_file(path))
        except (SafetensorError, OSError, TypeError) as error:
            raise SecondMomentError(
                f"{str(path)!r} is damaged: {error}; delete this file of the cache"
            ) from error
    entry = collect_entry(spec, tok, units, ORDINARY_TEXT)
    with suppress(OSError):  # it serves this process, and the next collects it again
        write_whole(path, lambda partial: save_file(entry.tensors(), partial))
    return entry


def collect_entry(
    spec: ModelSpec, tok: PreTrainedTokenizerBase, units: HiddenUnits, texts: object
) -> Entry:
    """The same of other texts, as ``collect_second_moment`` takes them; nothing is cached."""
    entry = entry_of(units)
    length = min(LENGTH, max_positions(spec.model) or LENGTH)
    budget = TOKENS_PER_DIM * entry.d_key
    moment = SecondMoment(
        entry.d_key + 1, dtype=torch.float64, device=entry.weight.device, damping="auto"
    )
    sample = [torch.empty(0, entry.d_key, device="cpu")]
    # Odd, so that it divides no row's length: all places of a row are in the sample.
    every = budget // N_SAMPLE | 1

    def take(_: DownProjection, h: Tensor, rows: list[Row]) -> None:
        wide = h.double()
        first = -moment.count % every
        sample.append(wide[first::every].float().cpu())
        moment.add(torch.cat([wide, wide.new_ones(len(wide), 1)], 1))

    reader = KeyReader(spec.model, [entry], separate=True, rows_at_once=_ROWS_AT_ONCE)
    rows = pack_rows(Corpus(texts, tok, embedding_rows(spec.model)), length, budget)
    title = "first edit of this form: text for its directions, once"
    with Progress(budget, True, title) as bar:
        while batch := list(islice(rows, _ROWS_AT_ONCE)):
            reader.read(batch, take)
            bar.update(moment.count, None)
    return Entry.of(moment, torch.cat(sample)[:N_SAMPLE])


def entry_of(units: HiddenUnits) -> DownProjection:
    """The map that h enters, in the form that a reader of keys takes: its key is h."""
    module = units.gate.module
    layout = "in_out" if is_conv1d(module) else "out_in"
    name = f"what enters the MLP of {units.projection.name}"
    return DownProjection(name, module, units.projection.layer, layout)
