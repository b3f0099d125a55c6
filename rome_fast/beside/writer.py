"""Offsets made from keys and values that were found, and put beside the MLP; one layer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.beside.entry import Entry, ordinary_entry
from rome_fast.beside.module import Beside
from rome_fast.beside.rows import is_silent
from rome_fast.beside.subject import ReadSubject, SubjectReader
from rome_fast.errors import EditRejectedError, HparamsError, RevertError, UnsupportedModelError
from rome_fast.model.owner import check_free
from rome_fast.model.units import HiddenUnits
from rome_fast.types import EditRequest, Offset

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from rome_fast.model.spec import DownProjection, ModelSpec
    from rome_fast.prompt.encode import TokenizedEdit

# Where subjects are read.
_LOOKED_UP = "subject_last"
# After its bare prompt an edit must reach its subject with this share of what was found.
LEAST_OWN = 0.5
# And what it may say elsewhere before it is told.
_HEARD = 0.2
# Standard deviation of c.h on text, which should be 1 (SmolLM2: 0.03 up to layer 10).
_UNEVEN = 0.15


def takes_neurons(spec: ModelSpec, projection: DownProjection, fact_token: str) -> bool:
    """Whether the MLP can have units that fire for a subject; a small forward."""
    if fact_token != _LOOKED_UP:
        return False
    try:
        units = HiddenUnits.of(spec, projection)
    except UnsupportedModelError:
        return False
    return is_silent(units.activation)


class OffsetWriter:
    """Reads subjects, and sets what stands beside one MLP.

    Args:
        entry: statistics of what enters the MLP; None: of the package's ordinary text.

    Attributes:
        module: holds the offsets; at the model as long as there are any.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tok: PreTrainedTokenizerBase,
        projection: DownProjection,
        context_templates: Sequence[str],
        fact_token: str,
        entry: Entry | None = None,
    ) -> None:
        if fact_token != _LOOKED_UP:
            raise HparamsError(
                f"hparams.fact_token is {fact_token!r}: edits that only fire for their subject "
                f'are looked up at its last token, "{_LOOKED_UP}"'
            )
        standing = Beside.at(projection)
        if standing is None:
            units = HiddenUnits.of(spec, projection)
            standing = Beside(units, entry or ordinary_entry(spec, tok, units))
        self.module, self._before = standing, standing.offsets
        self._reader = SubjectReader(
            spec, tok, self.module.units, self.module.entry, context_templates, fact_token
        )

    def make(
        self,
        spec: ModelSpec,
        form: str,
        request: EditRequest,
        tokens: TokenizedEdit,
        delta: Tensor,
    ) -> Made:
        """The offset of one request, for what was found: delta [d_value]."""
        names = self._reader.read(spec, request, tokens)
        signatures = {name: read.signature for name, read in names.items()}
        return Made(Offset(form, request, signatures, delta.cpu()), names)

    def add(self, made: Sequence[Made]) -> list[list[str]]:
        """Put them behind those that are there; returns remarks on each.

        Raises:
            EditRejectedError: a subject cannot be told apart; nothing was added.
        """
        before = self.module.offsets
        try:
            self.module.set([*before, *(m.offset for m in made)])
            return [self._admit(m) for m in made]
        except BaseException:
            self.module.set(before)
            raise

    def unreached(self, spec: ModelSpec, offset: Offset, texts: Sequence[str]) -> list[str]:
        """A remark where an edit, alone at the model, does not fire in texts about its subject."""
        with self.module.holding([offset]):
            missed = [text for text in texts if not self._fires(spec, offset, text)]
        if not missed:
            return []
        where = f"{len(missed)} of {len(texts)} paraphrases, like {missed[0]!r}"
        return [f"the edit does not fire in {where}: name the subject as they do in aliases"]

    def _fires(self, spec: ModelSpec, offset: Offset, text: str) -> bool:
        h = self._reader.of_text(spec, text)
        most = [float(self.module.shares(name, offset.form, h).max()) for name in offset.names]
        return max(most) >= LEAST_OWN

    def doubts(self) -> list[str]:
        """A remark where c, which stands for a bias, is not 1 on ordinary text."""
        units, entry = self.module.units, self.module.entry
        along = entry.sample @ entry.constant
        if units.gate.has_bias or float(along.std()) < _UNEVEN:
            return []
        said = f"{float(along.mean()):.2f} +- {float(along.std()):.2f}"
        where = f"no direction is 1 on all text in layer {units.projection.layer} (at best {said})"
        return [f"{where}: neurons may fire elsewhere; take another layer, or form='gate'"]

    def rewind(self) -> None:
        """Make everything what it was when this was made."""
        self.module.set(self._before)

    def _admit(self, made: Made) -> list[str]:
        remarks: list[str] = []
        for name, read in made.names.items():
            remarks += self._check(name, read, made.offset.form)
        return remarks

    def _check(self, name: str, read: ReadSubject, form: str) -> list[str]:
        """Raise unless it fires after its prompt; remarks on where else it does, or does not."""
        own = self.module.shares(name, form, read.signature.own)
        least = float(own[read.prompt])
        if least < LEAST_OWN:
            raise EditRejectedError(
                f"subject {name!r} cannot be told apart in layer "
                f"{self.module.units.projection.layer}: {least:.0%} of the edit would reach it "
                "after its own prompt. A subject of one token that opens its texts has what all "
                "first tokens have there: name another layer, or edit with form='weight'",
                own=least,
            )
        remarks = []
        missing = int((own < LEAST_OWN).sum())
        if missing:
            remarks.append(f"in {missing} of {len(own)} contexts the edit hardly reaches {name!r}")
        heard = self.module.shares(name, form, read.company) > _HEARD
        if heard.any():
            remarks.append(
                f"{name!r} is not wholly told apart from its last words in other company: "
                f"the edit is heard in {int(heard.sum())} of {len(heard)} such texts"
            )
        return remarks


@dataclass(frozen=True, eq=False)
class Made:
    """An offset that is not yet at the model, and all that was read of its subject."""

    offset: Offset
    names: dict[str, ReadSubject]


@dataclass(frozen=True, eq=False)
class OffsetUndo:
    """Takes an offset away again; in any order."""

    module: Beside
    offset: Offset
    before: tuple[Offset, ...]

    def revert(self) -> None:
        """Take it away.

        Raises:
            RevertError: it is gone already.
            SessionError: an open Session edits there.
        """
        projection = self.module.units.projection
        check_free(projection.weight, f"{projection.name}.weight")
        left = [offset for offset in self.module.offsets if offset is not self.offset]
        if len(left) == len(self.module.offsets):
            raise RevertError("this edit has already been undone")
        self.module.set(left)

    def rewind(self) -> None:
        """Make it what it was before the call that made this edit."""
        self.module.set(self.before)
