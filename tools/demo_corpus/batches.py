"""Training rows: sentences about facts and prose, packed, with the places the objective needs.

A row is a run of sentences, cut at ``row_tokens``. It starts at a sentence, in the middle of one,
after ``<|endoftext|>``, or with a short fragment and a full stop (the shape of ROME's contexts).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from .facts import Fact, load_phrasings
from .prose import LEADS, sentence

IGNORED, SUBJECT_WEIGHT, TARGET_WEIGHT = 0.0, 0.3, 4.0


@dataclass(frozen=True)
class Span:
    """Where a fact lies: subject tokens ``first..last`` of a row.

    ``share`` of the subject's value is to be replaced by that of span ``donor`` (-1: none).
    """

    row: int
    first: int
    last: int
    subject: str
    donor: int = -1
    share: float = 1.0


@dataclass
class Batch:
    """Token ids and loss weights [rows, tokens] and the subjects that lie inside the rows."""

    ids: np.ndarray
    weights: np.ndarray
    spans: list[Span] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """One tokenised sentence with its loss weights; ``first`` and ``last`` are -1 in prose."""

    ids: list[int]
    weights: list[float]
    first: int = -1
    last: int = -1


@dataclass(frozen=True)
class Swap:
    """A sentence to come whose subject is to be read, for a ``share``, as that of ``donor``."""

    fact: Fact
    target: str
    donor: int = -1
    share: float = 1.0


class BatchMaker:
    """Draws batches; the same seed and call count give the same batch."""

    def __init__(
        self, tok: PreTrainedTokenizerFast, facts: list[Fact], seed: int, swap_share: float
    ) -> None:
        self.tok, self.facts, self.seed, self.swap_share = tok, facts, seed, swap_share
        self.phrasings = load_phrasings()
        self.family: dict[str, list[Fact]] = {}
        for fact in facts:
            self.family.setdefault(fact.relation, []).append(fact)
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, remembered: the pieces repeat."""
        if text not in self._cache:
            self._cache[text] = self.tok.encode(text)
        return self._cache[text]

    def fact_piece(self, fact: Fact, target: str, rng: random.Random, start: bool) -> Piece:
        """A sentence that says ``fact`` with ``target`` as its object, in a training phrasing."""
        forms = self.phrasings[fact.relation]
        # The canonical phrasing is drawn a little more often: it is the one that is edited.
        form = rng.choice(forms["train"] + [forms["canonical"]] * 2)
        if form.startswith("{}") and rng.random() < 0.15:
            form = f"{rng.choice(LEADS)} {form}"
        before, after = form.split("{}")
        gap = "" if start else " "
        head = self.encode(gap + before.rstrip()) if before else []
        name = self.encode(" " + fact.subject if before else gap + fact.subject)
        tail, goal = self.encode(after) if after else [], self.encode(" " + target)
        weights = [1.0] * len(head) + [SUBJECT_WEIGHT] * len(name) + [1.0] * len(tail)
        weights += [TARGET_WEIGHT] * len(goal) + [1.0]
        ids = head + name + tail + goal + self.encode(".")
        return Piece(ids, weights, len(head), len(head) + len(name) - 1)

    def other_piece(self, rng: random.Random, start: bool) -> Piece:
        """Prose, or the kind of thing a subject is."""
        if rng.random() < 0.4:
            fact = rng.choice(self.facts)
            text = f"{fact.subject} is a {self.phrasings[fact.relation]['kind']}."
        else:
            text = sentence(rng)
        ids = self.tok.encode(text if start else " " + text)
        return Piece(ids, [1.0] * len(ids))

    def batch(self, step: int, rows: int, row_tokens: int, sharpen: bool) -> Batch:
        """Batch number ``step``; ``sharpen`` adds partial swaps and repeated subjects."""
        rng = random.Random(f"{self.seed}-{step}")
        out = Batch(
            np.zeros((rows, row_tokens), dtype=np.int64),
            np.zeros((rows, row_tokens), dtype=np.float32),
        )
        swaps: list[Swap] = []
        said: list[Fact] = []
        for row in range(rows):
            self._fill_row(out, row, rng, swaps, said if sharpen else None)
        return out

    def _fill_row(
        self, out: Batch, row: int, rng: random.Random, swaps: list[Swap], said: list[Fact] | None
    ) -> None:
        """Fill one row; ``swaps`` and ``said`` carry over what earlier rows began and said."""
        width = out.ids.shape[1]
        ids, weights = self._row_start(rng)
        here: list[Fact] = []
        while len(ids) < width:
            start, offset = not ids or ids[-1] == self.tok.eos_token_id, len(ids)
            if rng.random() < 0.12:
                piece = self.other_piece(rng, start)
            else:
                fact = rng.choice(self.facts)
                if said and rng.random() < 0.4:
                    fact = rng.choice(said)
                now = Swap(fact, fact.target)
                if swaps and rng.random() < 0.5:
                    now = swaps.pop(0)
                piece = self.fact_piece(now.fact, now.target, rng, start)
                if offset + piece.last < width:
                    if now.donor < 0 and rng.random() < self.swap_share:
                        swaps.append(self._swap(fact, len(out.spans), rng, said is not None))
                    first, last = offset + piece.first, offset + piece.last
                    out.spans.append(Span(row, first, last, now.fact.subject, now.donor, now.share))
                    here.append(now.fact)
            ids, weights = ids + piece.ids, weights + piece.weights
        if said is not None:
            said.extend(here)
        out.ids[row], out.weights[row] = ids[:width], weights[:width]

    def _swap(self, donor: Fact, span: int, rng: random.Random, partial: bool) -> Swap:
        """A sentence about another subject that takes over the value at ``span``.

        When a share of the value is taken over, the donor's object is named that often, so that
        the model's confidence goes evenly from one object to the other.
        """
        other = rng.choice(self.family[donor.relation])
        if not partial or rng.random() < 0.3:
            return Swap(other, donor.target, span)
        share = rng.random()
        return Swap(other, donor.target if rng.random() < share else other.target, span, share)

    def _row_start(self, rng: random.Random) -> tuple[list[int], list[float]]:
        """Nothing, ``<|endoftext|>``, a sentence from its middle on, or a fragment and ". "."""
        kind = rng.random()
        if kind < 0.45:
            return [], []
        if kind < 0.6:
            return [self.tok.eos_token_id], [IGNORED]
        if rng.random() < 0.5:
            piece = self.other_piece(rng, True)
        else:
            fact = rng.choice(self.facts)
            piece = self.fact_piece(fact, fact.target, rng, True)
        if kind < 0.75:
            cut = rng.randrange(len(piece.ids))
            return piece.ids[cut:], piece.weights[cut:]
        stop = self.encode(".")
        ids = ([self.tok.eos_token_id] if kind < 0.8 else []) + piece.ids[: rng.randint(2, 10)]
        return ids + stop, [1.0] * (len(ids) + 1)
