"""One collection: the running sums of all layers, and the loop that feeds them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch

from rome_fast.errors import InvalidArgumentError, NonFiniteError, SecondMomentError
from rome_fast.model.hashes import versions
from rome_fast.model.spec import max_positions
from rome_fast.moment.collect.checkpoint import Checkpoint, RowDigest, deferred_interrupt
from rome_fast.moment.collect.corpus import Corpus
from rome_fast.moment.collect.forward import KeyReader
from rome_fast.moment.collect.packing import Row, pack_rows
from rome_fast.moment.collect.progress import Progress
from rome_fast.moment.collect.ranks import Ranks
from rome_fast.moment.provenance import provenance
from rome_fast.moment.second_moment import SecondMoment

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from rome_fast.model.spec import DownProjection, ModelSpec

# Keys a dimension that tokens="auto" stands for: more change nothing that an edit does
# (docs/second_moments.md).
ENOUGH_KEYS = 4

# And of a sequence of edits, whose leaks add up (docs/sessions.md).
ENOUGH_KEYS_OF_A_SEQUENCE = 32

# Tokens per forward. On a CPU few tokens are faster: their activations stay in the cache.
_TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Settings:
    """What is collected and how; all of it ends up in the file."""

    tokens: int | Literal["auto"]
    max_length: int
    documents: Literal["separate", "joined"]
    first_token: Literal["keep", "skip"]
    damping: float | Literal["auto"]

    def __post_init__(self) -> None:
        if self.tokens != "auto" and (type(self.tokens) is not int or self.tokens < 1):
            raise InvalidArgumentError(f"tokens must be 'auto' or at least 1, got {self.tokens!r}")
        if type(self.max_length) is not int or self.max_length < 1:
            raise InvalidArgumentError(f"max_length must be at least 1, got {self.max_length!r}")
        for name, known in (
            ("documents", ("separate", "joined")),
            ("first_token", ("keep", "skip")),
        ):
            if getattr(self, name) not in known:
                raise InvalidArgumentError(
                    f"{name} must be {known[0]!r} or {known[1]!r}, got {getattr(self, name)!r}"
                )


class Collection:
    """The running sums of all layers, and the loop that feeds them."""

    def __init__(
        self,
        spec: ModelSpec,
        tok: PreTrainedTokenizerBase,
        projections: list[DownProjection],
        settings: Settings,
        ranks: Ranks,
        dtype: torch.dtype,
        compensated: bool,
    ) -> None:
        self.settings = settings
        self.ranks = ranks
        self.length = min(settings.max_length, max_positions(spec.model) or settings.max_length)
        device = projections[0].weight.device.type
        self.rows_at_once = max(1, _TOKENS_AT_ONCE.get(device, 1024) // self.length)
        separate = settings.documents == "separate"
        self.reader = KeyReader(
            spec.model, projections, separate=separate, rows_at_once=self.rows_at_once
        )
        most = max(p.d_key for p in projections)
        self.budget = ENOUGH_KEYS * most if settings.tokens == "auto" else settings.tokens
        self.moments = {}
        for p in projections:
            moment = SecondMoment(
                p.d_key,
                dtype=dtype,
                device=p.weight.device,
                compensated=compensated,
                damping=settings.damping,
            )
            moment.info = provenance(spec, tok, p)
            self.moments[p.layer] = moment
        self.rows_read = self.tokens_read = 0
        self.digest = RowDigest()

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed."""
        first = next(iter(self.moments.values()))
        return {
            **asdict(self.settings),
            "length": self.length,
            "documents": self.reader.documents,
            "dtype": str(first.moment_sum.dtype),
            "compensated": first.compensation is not None,
            "layers": str(list(self.moments)),
            "ranks": self.ranks.size,
            **{
                f"{field} of layer {layer}": value
                for layer, moment in self.moments.items()
                for field, value in moment.info.items()
            },
        }

    def run(self, corpus: Corpus, checkpoint: Checkpoint, show: bool, title: str) -> None:
        """Read rows until there are enough of them, or no more."""
        rows = pack_rows(corpus, self.length, self.budget)
        enough = self._resume(checkpoint, rows)
        with deferred_interrupt() as interrupt, Progress(self.budget, show, title) as bar:
            bar.update(self.tokens_read, corpus.fraction_read)
            while not enough:
                batch = self._next_batch(rows)
                if not self.ranks.all_equal(self.digest.number()):
                    raise SecondMomentError("the ranks read different texts: give all the same")
                if not batch:
                    break
                self.reader.read(batch[self.ranks.rank :: self.ranks.size], self._take)
                bar.update(self.tokens_read, corpus.fraction_read)
                stop, save = self.ranks.any(interrupt.pressed, checkpoint.due)
                if stop or save:
                    checkpoint.save(self._progress(enough=False), self.moments)
                if stop:
                    raise KeyboardInterrupt
            checkpoint.save(self._progress(enough=True), self.moments)

    def results(self, source: str) -> dict[int, SecondMoment]:
        """The sums over all ranks, and all that is known about them."""
        finished = {}
        for layer, mine in self.moments.items():
            moment = self._total(mine)
            if not moment.count:
                raise SecondMomentError("texts hold no token")
            moment.source = f"{moment.count:,} keys of {source}"
            moment.info.update(
                texts=source,
                tokens=self.tokens_read,
                max_length=self.length,
                documents=self.reader.documents,
                first_token=self.settings.first_token,
                versions=versions(),
            )
            finished[layer] = moment
        return finished

    def _next_batch(self, rows: Iterator[Row]) -> list[Row]:
        """The rows of one step, for all ranks together."""
        batch = list(islice(rows, self.rows_at_once * self.ranks.size))
        for row in batch:
            self._count(row)
        return batch

    def _count(self, row: Row) -> None:
        self.digest.update(row)
        self.rows_read += 1
        self.tokens_read += len(row)

    def _take(self, projection: DownProjection, keys: Tensor, rows: list[Row]) -> None:
        """Add the keys of one layer, [n * t, d_key], except those that are skipped."""
        positions = torch.tensor([row.positions for row in rows], device=keys.device)
        mask = None if self.settings.first_token == "keep" else positions > 0
        try:
            self.moments[projection.layer].add(keys, mask)
        except NonFiniteError as error:
            raise NonFiniteError(f"second moment of {projection.name}: {error}") from error

    def _total(self, mine: SecondMoment) -> SecondMoment:
        """The sum over all ranks; with a single rank, ``mine`` itself."""
        if self.ranks.size == 1:
            return mine
        total = copy.deepcopy(mine)
        count = torch.tensor([mine.count])
        self.ranks.add_up_(count)
        total.count = int(count)
        if mine.compensation is None:
            self.ranks.add_up_(total.moment_sum)
        else:
            exact = mine.exact_sum()
            self.ranks.add_up_(exact)
            total.replace_sum(exact)
        return total

    def _progress(self, enough: bool) -> dict[str, Any]:
        return {
            "rows": self.rows_read,
            "digest": self.digest.hexdigest(),
            "rows_at_once": self.reader.rows_at_once,
            "enough": enough,
        }

    def _resume(self, checkpoint: Checkpoint, rows: Iterator[Row]) -> bool:
        """Restore the checkpoint's state and skip its rows; True if they were already enough."""
        progress = checkpoint.load(self.moments)
        done = progress["rows"] if progress else 0
        if not self.ranks.all_equal(done):
            raise SecondMomentError(
                "the checkpoints of the ranks are of different moments: delete them to start again"
            )
        if progress is None:
            return False
        for row in islice(rows, done):
            self._count(row)
        if self.digest.hexdigest() != progress["digest"]:
            raise SecondMomentError(
                f"checkpoint {str(checkpoint.path)!r} is of other texts: resume with the same "
                "ones, or delete it"
            )
        self.reader.rows_at_once = progress["rows_at_once"]
        return bool(progress["enough"])
