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
from rome_fast.moment.collect.convergence import (
    HELD_OUT_PER_ROW,
    HELD_OUT_ROWS,
    Convergence,
    held_out_of,
)
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
        if type(self.max_length) is not int or self.max_length < HELD_OUT_PER_ROW:
            raise InvalidArgumentError(
                f"max_length must be at least {HELD_OUT_PER_ROW}, got {self.max_length!r}"
            )
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
        self.moments, self.convergences = {}, {}
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
            self.convergences[p.layer] = Convergence.of(p.d_key)
        self.rows_read = self.tokens_read = 0
        # The first check comes after all held-out keys have been seen.
        self.next_check = max(HELD_OUT_ROWS * self.length, *(2 * p.d_key for p in projections))
        self.checked = False
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

    def run(self, corpus: Corpus, checkpoint: Checkpoint, show: bool) -> None:
        """Read rows until there are enough of them, or no more."""
        budget = None if self.settings.tokens == "auto" else self.settings.tokens
        rows = pack_rows(corpus, self.length, budget)
        enough = self._resume(checkpoint, rows)
        with deferred_interrupt() as interrupt, Progress(budget, show) as bar:
            bar.update(self.tokens_read, corpus.fraction_read, self.convergences)
            while not enough:
                batch = self._next_batch(rows)
                if not self.ranks.all_equal(self.digest.number()):
                    raise SecondMomentError("the ranks read different texts: give all the same")
                if not batch:
                    break
                self.reader.read(batch[self.ranks.rank :: self.ranks.size], self._take)
                enough = self._check_due() and self._check()
                bar.update(self.tokens_read, corpus.fraction_read, self.convergences)
                stop, save = self.ranks.any(interrupt.pressed, checkpoint.due)
                if stop or save:
                    checkpoint.save(self._progress(enough), self.moments, self.convergences)
                if stop:
                    raise KeyboardInterrupt
            checkpoint.save(self._progress(enough=True), self.moments, self.convergences)

    def results(self, source: str) -> dict[int, SecondMoment]:
        """The sums over all ranks, and all that is known about them."""
        finished = {}
        for layer, mine in self.moments.items():
            convergence = self.convergences[layer]
            if not self.checked:
                mine.add(convergence.taken_back().to(mine.moment_sum))
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
            if self.settings.tokens == "auto":
                moment.info["convergence"] = convergence.report()
                moment.source += convergence.summary()
            finished[layer] = moment
        return finished

    def _next_batch(self, rows: Iterator[Row]) -> list[Row]:
        """The rows of one step, for all ranks together; fewer where a check is due."""
        batch: list[Row] = []
        while len(batch) < self.rows_at_once * self.ranks.size and not self._check_due():
            row = next(rows, None)
            if row is None:
                break
            self._count(row)
            batch.append(row)
        return batch

    def _count(self, row: Row) -> None:
        self.digest.update(row)
        self.rows_read += 1
        self.tokens_read += len(row)

    def _take(self, projection: DownProjection, keys: Tensor, rows: list[Row]) -> None:
        """Add the keys of one layer, [n * t, d_key], except those that are held out or skipped."""
        moment, convergence = self.moments[projection.layer], self.convergences[projection.layer]
        length = len(rows[0])
        mask = torch.ones(len(rows), length, dtype=torch.bool)
        if self.settings.first_token == "skip":
            mask &= torch.tensor([row.positions for row in rows]) > 0
        if self.settings.tokens == "auto":
            for i, row in enumerate(rows):
                # A row that is not full may be the only one: nothing is held out of it.
                full = mask[i].nonzero().flatten().tolist() if length == self.length else []
                if held_out := held_out_of(row.index, full):
                    convergence.hold_out(row.index, keys[i * length : (i + 1) * length], held_out)
                    mask[i, held_out] = False
        try:
            moment.add(keys, mask.to(keys.device))
        except NonFiniteError as error:
            raise NonFiniteError(f"second moment of {projection.name}: {error}") from error

    def _check_due(self) -> bool:
        return self.settings.tokens == "auto" and self.tokens_read >= self.next_check

    def _check(self) -> bool:
        """Check every layer with the keys so far; True if all have converged."""
        while self._check_due():
            self.next_check *= 2
        for layer, mine in self.moments.items():
            convergence = self.convergences[layer]
            if not self.checked:
                self.ranks.add_up_(convergence.keys)
            convergence.check(self._total(mine))
        self.checked = True
        return all(self.ranks.any(*(c.converged for c in self.convergences.values())))

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
            "next_check": self.next_check,
            "checked": self.checked,
            "enough": enough,
        }

    def _resume(self, checkpoint: Checkpoint, rows: Iterator[Row]) -> bool:
        """Restore the checkpoint's state and skip its rows; True if they were already enough."""
        progress = checkpoint.load(self.moments, self.convergences)
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
        self.next_check = progress["next_check"]
        self.checked = progress["checked"]
        return bool(progress["enough"])
