"""collect_second_moment: texts in, one SecondMoment per layer out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from rome_fast.errors import InvalidArgumentError, SecondMomentError, SecondMomentWarning, warn
from rome_fast.model.open_model import frozen
from rome_fast.model.spec import ModelSpec, check_tokenizer, embedding_rows
from rome_fast.moment.collect.checkpoint import Checkpoint
from rome_fast.moment.collect.collection import Collection, Settings
from rome_fast.moment.collect.corpus import Corpus
from rome_fast.moment.collect.ranks import Ranks
from rome_fast.moment.second_moment import SecondMoment

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def collect_second_moment(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    texts: object,
    layers: int | Sequence[int],
    *,
    tokens: int | Literal["auto"] = "auto",
    max_length: int = 1024,
    documents: Literal["separate", "joined"] = "separate",
    first_token: Literal["keep", "skip"] = "keep",
    dtype: torch.dtype = torch.float32,
    compensated: bool = False,
    damping: float | Literal["auto"] = "auto",
    text_column: str = "text",
    source: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    distributed: bool = False,
    progress: bool = True,
    title: str = "second moment",
) -> dict[int, SecondMoment]:
    """Second moments of the keys of ordinary text, for all wanted layers in one pass.

    The forward stops at the last layer's key. Documents are packed into rows of ``max_length``
    tokens without padding; a document that crosses the end of a row starts anew in the next.
    When memory runs out the batch is halved. (kmeng01/rome, ``layer_stats.py``; there each pass
    serves one layer, over padded rows as long as the model takes, of a fixed number of articles.)

    Args:
        texts: the path of a text file (one text a line), or an iterable of strings, of token ids,
            or of rows of a data set (``datasets``).
        layers: 0-based.
        tokens: how many to read, at most; ``"auto"`` is four a dimension of the widest key.
        max_length: of a row; the model's own limit holds where it is less.
        documents: ``"separate"`` keeps the documents of a row from seeing each other (through
            position ids and mask, where the model allows: ``info["documents"]`` says so),
            ``"joined"`` lets a row be one sequence.
        first_token: ``"skip"`` leaves out the keys at the start of every document, which are
            attention sinks far from all others in many models; the reference keeps them.
        dtype, compensated, damping: of the SecondMoments, see there. A float64 model is always
            summed in float64.
        text_column: of data-set rows.
        source: what the texts are, for results and files; by default the file's name.
        checkpoint: file to write the state to once a minute, on Ctrl-C or SIGTERM, and at the end.
            It is left in place: delete it when the results are saved.
        resume: go on from the checkpoint, with the same texts and settings, to the same bits as
            without interruption. Without a checkpoint the collection starts at the beginning.
        distributed: share the rows among the processes of ``torch.distributed``; every rank
            returns the sum over all.
        progress: show a bar with tokens/s and the time left; title: what it says.

    Returns:
        {layer: SecondMoment}.

    Raises:
        InvalidArgumentError: a bad argument, or a text of no known kind (its index is named).
        UnsupportedModelError, HparamsError: there is no editable matrix at a layer.
        NonFiniteError: a key is NaN or infinite.
        SecondMomentError: no token at all; the checkpoint is of other texts or settings; a single
            row does not fit in memory.
        KeyboardInterrupt: after the batch in progress, and after the checkpoint is written.
    """
    settings = Settings(tokens, max_length, documents, first_token, damping)
    if resume and checkpoint is None:
        raise InvalidArgumentError("resume=True needs checkpoint=, the file to go on from")
    spec = ModelSpec.of(model)
    model = spec.model
    check_tokenizer(model, tok)
    corpus = Corpus(texts, tok, embedding_rows(model), text_column)
    ranks = Ranks.current() if distributed else Ranks()
    wanted = list(layers) if isinstance(layers, Iterable) else [layers]
    if not all(type(layer) is int for layer in wanted):
        raise InvalidArgumentError(f"layers must be a number or a list of numbers, got {layers!r}")
    mixtures = set(range(spec.n_layers)).difference(spec.dense_layers)
    projections = [spec.down_projection(i, i in mixtures) for i in sorted(set(wanted))]
    if not projections:
        raise InvalidArgumentError("layers must name at least one layer, got none")
    if any(p.weight.dtype == torch.float64 for p in projections):
        dtype, compensated = torch.float64, False
    with frozen(spec):
        collection = Collection(spec, tok, projections, settings, ranks, dtype, compensated)
        state = Checkpoint(Path(checkpoint) if checkpoint else None, collection.identity(), ranks)
        if ranks.any(state.path is not None and state.path.exists())[0] and not resume:
            raise SecondMomentError(
                f"checkpoint {str(state.path)!r} exists: pass resume=True to go on from it, or "
                "delete it"
            )
        if documents == "separate" and collection.reader.documents == "joined":
            text = "this model cannot keep the documents of a row apart: they are joined"
            warn(text, SecondMomentWarning)
        collection.run(corpus, state, progress and ranks.rank == 0, title)
        return collection.results(source or corpus.name)
