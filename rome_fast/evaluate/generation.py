"""Free generations: greedy continuations of many prompts, their fluency and their consistency."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from rome_fast.errors import InvalidArgumentError, InvalidRequestError
from rome_fast.evaluate.scoring import BATCH_LOGITS, Trial, batches, tokens_of_a_forward, tried
from rome_fast.model.spec import embedding_rows, max_positions
from rome_fast.prompt.answers import Answer, read_answers
from rome_fast.prompt.greedy import greedy_continuations
from rome_fast.prompt.target import prompt_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.prompt.chat import Chat

_Said = TypeVar("_Said")
Narrow: TypeAlias = "Callable[[Tensor], None] | None"

# Chinese and Japanese are written without spaces: each of their characters is a word. Elsewhere a
# word is a run of letters and digits, with apostrophes inside; a punctuation mark is a word too.
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORDS = re.compile(
    rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+(?:['\u2019][^\W_{_IDEOGRAPHS}]+)*|[^\w\s]|_"
)


def generate(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    n_tokens: int,
    trial: Trial | None = None,
    chats: Sequence[Chat | None] | None = None,
) -> list[str]:
    """The greedy continuation of each prompt, without the prompt: ``n_tokens`` tokens, as text.

    Shorter where the text ends, or the model's positions do. Prompts of similar length share a
    forward; each text is what the prompt alone would give, up to rounding.

    Args:
        trial: updates to be tried, ``trial.edit_of[i]`` for prompt i.
        chats: of each prompt the messages before it, or None; None: all are plain texts.

    Raises:
        InvalidRequestError: a prompt has no tokens, or more than the model takes.
        NonFiniteError: the logits are NaN or infinite.
    """

    def read(rows: Sequence[Sequence[int]], narrow: Narrow) -> list[str]:
        return greedy_continuations(model, tok, rows, n_tokens, narrow)

    return _in_batches(model, tok, prompts, n_tokens, trial, chats, read)


def natural_answers(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    n_tokens: int,
    trial: Trial | None = None,
    chats: Sequence[Chat | None] | None = None,
) -> list[Answer]:
    """The greedy answer to each prompt, to its natural stop; as ``generate``."""

    def read(rows: Sequence[Sequence[int]], narrow: Narrow) -> list[Answer]:
        return read_answers(model, tok, rows, n_tokens, narrow)

    return _in_batches(model, tok, prompts, n_tokens, trial, chats, read)


def encode_prompts(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    chats: Sequence[Chat | None] | None = None,
) -> list[list[int]]:
    """The ids of prompts that are to be continued.

    Raises:
        InvalidRequestError: one has no tokens, or more than the model takes.
    """
    rows = prompt_ids(tok, prompts, chats or [None] * len(prompts))
    limit = max_positions(model)
    for prompt, ids in zip(prompts, rows, strict=True):
        if not ids or (limit is not None and len(ids) > limit):
            raise InvalidRequestError(
                f"prompt {prompt[:60]!r} makes {len(ids)} tokens, but the model continues 1 to "
                f"{limit or 'any number'} of them"
            )
    return rows


def _in_batches(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    n_tokens: int,
    trial: Trial | None,
    chats: Sequence[Chat | None] | None,
    read: Callable[[Sequence[Sequence[int]], Narrow], list[_Said]],
) -> list[_Said]:
    """What ``read`` makes of each prompt's ids, prompts of similar length together."""
    rows = encode_prompts(model, tok, prompts, chats)
    lengths = [len(ids) + n_tokens for ids in rows]
    said: dict[int, _Said] = {}
    n_rows = max(1, BATCH_LOGITS // embedding_rows(model))
    for batch in batches(lengths, tokens_of_a_forward(model), n_rows):
        edits = [] if trial is None else [trial.edit_of[i] for i in batch]
        with tried(trial, edits) as narrow:
            found = read([rows[i] for i in batch], narrow)
        said.update(zip(batch, found, strict=True))
    return [said[i] for i in range(len(prompts))]


def ngram_entropy(texts: Sequence[str]) -> float:
    """Fluency: how little the texts repeat themselves, the mean over them in bits (GE).

    Of one text it is the mean of 2/3 H2 and 4/3 H3, with Hn the Shannon entropy of its n-grams of
    words (kmeng01/rome, ``eval_utils_counterfact.py``, which gives it times 100); 0 where it has
    fewer than two words. The words are ``words``, not NLTK's, so figures agree with published ones
    only roughly.

    Raises:
        InvalidArgumentError: there are no texts.
    """
    if not texts:
        raise InvalidArgumentError("texts must not be empty: the entropy is a mean over them")
    return sum(map(_text_entropy, texts)) / len(texts)


def reference_score(texts: Sequence[str], references: Sequence[str]) -> float:
    """Consistency: how much the texts are about what the references are about, 0 to 1 (RS).

    It is the cosine of two TF-IDF vectors, that of all texts together and that of all references
    together (kmeng01/rome, ``eval_utils_counterfact.py``). There the vocabulary and its weights
    come from a file made from Wikipedia; here they are of the references given: a word in d of n
    references weighs ln((1 + n) / (1 + d)) + 1. Published figures are therefore not comparable.

    Raises:
        InvalidArgumentError: there are no references.
    """
    if not references:
        raise InvalidArgumentError("references must not be empty: the texts are compared with them")
    documents = [Counter(words(text.lower())) for text in references]
    n_with = Counter(word for document in documents for word in document)
    said = Counter(word for text in texts for word in words(text.lower()))

    def weighted(counts: Counter[str]) -> dict[str, float]:
        n = 1 + len(references)
        return {w: count * (math.log(n / (1 + n_with[w])) + 1) for w, count in counts.items()}

    a, b = weighted(said), weighted(sum(documents, Counter()))
    norms = math.hypot(*a.values()) * math.hypot(*b.values())
    return sum(weight * b.get(word, 0.0) for word, weight in a.items()) / norms if norms else 0.0


def words(text: str) -> list[str]:
    """Words and punctuation marks, in order; a Chinese or Japanese character is a word."""
    return _WORDS.findall(text)


def _text_entropy(text: str) -> float:
    found = words(text)
    return (2 / 3 * _ngram_entropy(found, 2) + 4 / 3 * _ngram_entropy(found, 3)) / 2


def _ngram_entropy(of: Sequence[str], n: int) -> float:
    """Shannon entropy in bits of the frequencies of runs of ``n``; 0 where there are none."""
    counts = Counter(tuple(of[i : i + n]) for i in range(len(of) - n + 1)).values()
    total = sum(counts)
    return sum(count / total * math.log2(total / count) for count in counts)
