"""The ids of a target behind its prompt: with its space, without a second BOS or space.

A target tokenised alone gets a BOS or a second word-start mark with many tokenizers, so its ids
are those that follow the prompt's when both are tokenised together. Where the two merge across the
border, other ways are tried until the ids decode to the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rome_fast.errors import InvalidRequestError
from rome_fast.prompt.border import space_between
from rome_fast.prompt.chat import Chat, Frame
from rome_fast.prompt.ids import all_text_ids, decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A target that merges with its prompt is tokenised behind one of these instead.
_ANCHORS = ("\n", ".", "a")


class Asked(NamedTuple):
    """A prompt, its target, the messages before it, and whether a space stands between the two.

    ``space`` None: as text would have it.
    """

    prompt: str
    target: str
    chat: Chat | None = None
    space: bool | None = None


class Continuation(NamedTuple):
    """A prompt and what follows it, as token ids.

    Attributes:
        text: the target with the space before it, if there is one.
        is_exact: the ids decode to the same text as prompt and target tokenised together.
    """

    prompt_ids: list[int]
    target_ids: list[int]
    text: str
    is_exact: bool = True


def find_target_ids(tok: PreTrainedTokenizerBase, prompt: str, target: str) -> list[int]:
    """Ids of the target behind the prompt, with a space before it where one belongs."""
    return continuations(tok, [Asked(prompt, target)])[0].target_ids


def prompt_ids(
    tok: PreTrainedTokenizerBase, prompts: Sequence[str], chats: Sequence[Chat | None]
) -> list[list[int]]:
    """Ids of each prompt, put behind the messages of its chat if it has one.

    A space at the end of a prompt is dropped, since the continuation brings its own.

    Raises:
        ChatTemplateError: as ``Frame``.
    """
    frames = {chat: Frame.of(tok, chat) for chat in set(chats)}
    texts = [frames[c].wrap(p.rstrip(" ")) for p, c in zip(prompts, chats, strict=True)]
    return all_text_ids(tok, texts, [chat is not None for chat in chats])


def continuations(tok: PreTrainedTokenizerBase, asked: Sequence[Asked]) -> list[Continuation]:
    """The ids of prompts and of their targets behind them.

    Raises:
        InvalidRequestError: a target tokenises to nothing.
        ChatTemplateError: as ``Frame``.
    """
    frames = {one.chat: Frame.of(tok, one.chat) for one in asked}
    texts, said = [], []
    for one in asked:
        texts.append(frames[one.chat].wrap(one.prompt.rstrip(" ")))
        said.append(_with_its_space(one, frames[one.chat]))
    in_chat = [one.chat is not None for one in asked]
    prompt_rows = all_text_ids(tok, texts, in_chat)
    joint_rows = all_text_ids(tok, [a + b for a, b in zip(texts, said, strict=True)], in_chat)
    found = []
    for prompt_ids, joint_ids, text in zip(prompt_rows, joint_rows, said, strict=True):
        continuation = _continuation(tok, prompt_ids, joint_ids, text)
        if not decode(tok, continuation.target_ids).strip():
            ids = continuation.target_ids
            raise InvalidRequestError(f"target {text.strip()!r} tokenises to nothing: {ids}")
        found.append(continuation)
    return found


def _with_its_space(asked: Asked, frame: Frame) -> str:
    """The target with what stands between it and the prompt."""
    target = asked.target
    if asked.space is not None:
        return " " * asked.space + target.lstrip(" ")
    if frame.gap is not None:
        return frame.gap + target.lstrip(" ")
    return space_between(asked.prompt, target) + target


def _continuation(
    tok: PreTrainedTokenizerBase, prompt_ids: list[int], joint_ids: list[int], text: str
) -> Continuation:
    n_prompt = len(prompt_ids)
    if joint_ids[:n_prompt] == prompt_ids and len(joint_ids) > n_prompt:
        return Continuation(prompt_ids, joint_ids[n_prompt:], text)
    wanted = decode(tok, joint_ids)
    for ids in _other_ways(tok, text):
        if decode(tok, [*prompt_ids, *ids]) == wanted:
            return Continuation(prompt_ids, ids, text)
    return Continuation(prompt_ids, next(_other_ways(tok, text)), text, is_exact=False)


def _other_ways(tok: PreTrainedTokenizerBase, text: str) -> Iterator[list[int]]:
    """Ids of a target tokenised alone (some tokenizers then add a space), and behind anchors."""

    def ids_of(x: str) -> list[int]:
        return list(tok(x, add_special_tokens=False)["input_ids"])

    yield ids_of(text)
    for anchor in _ANCHORS:
        anchor_ids, ids = ids_of(anchor), ids_of(anchor + text)
        if ids[: len(anchor_ids)] == anchor_ids:
            yield ids[len(anchor_ids) :]
