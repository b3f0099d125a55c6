"""Conversations: the messages around a prompt, and what the chat template makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rome_fast.errors import ChatTemplateError, InvalidRequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# (role, content) of the messages before a prompt, in order.
Messages = tuple[tuple[str, str], ...]

# (name, value) of what the template is given beside the messages, by name.
TemplateKwargs = tuple[tuple[str, str | int | float | bool | None], ...]

# Stand in for the user's text and the answer, to see what the template puts around them.
_PROMPT, _ANSWER = "0prompt0", "0answer0"


@dataclass(frozen=True)
class Chat:
    """A conversation up to the user's text, and how it is rendered."""

    messages: Messages = ()
    template_kwargs: TemplateKwargs = ()


def split_messages(prompt: Any, chat: Any) -> tuple[Any, Messages | None]:
    """(the user's text, the messages before it); the latter is None where there is no chat.

    Args:
        prompt: a text, or a list of messages that ends with the user's.
        chat: None or False, True, or the messages that come before the prompt.

    Raises:
        InvalidRequestError: a message is malformed, or the last one is not the user's.
    """
    if isinstance(prompt, str | Mapping) or not isinstance(prompt, Sequence) or not prompt:
        return prompt, _messages(chat)
    if chat not in (None, True):
        raise InvalidRequestError(
            f"request prompt is a list of messages, and chat={chat!r} says otherwise: put them all "
            "into one of the two"
        )
    *before, (role, content) = _messages(prompt) or ()
    if role != "user":
        raise InvalidRequestError(
            f"request prompt ends with a message of role {role!r}: the last one holds the text to "
            "edit, and must be the user's"
        )
    return content, tuple(before)


def _messages(chat: Any) -> Messages | None:
    """Messages as dicts or pairs -> pairs; True -> (); None or False -> None."""
    if chat is None or isinstance(chat, bool):
        return () if chat else None
    if isinstance(chat, str | Mapping) or not isinstance(chat, Sequence):
        raise InvalidRequestError(
            f"request chat must be True or a list of messages, got {type(chat).__name__}: {chat!r}"
        )
    return tuple(_message(item) for item in chat)


def template_kwargs_of(given: Any) -> TemplateKwargs | None:
    """A mapping, or pairs, of what a chat template is given, as sorted pairs; None where nothing.

    Raises:
        InvalidRequestError: neither, or a value that is no text, number, true, false or nothing.
    """
    if given is None or given == {} or given == ():
        return None
    try:
        pairs = sorted(dict(given).items())
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"request chat_template_kwargs must be a dict, got {given!r}"
        ) from error
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str | int | float | None):
            raise InvalidRequestError(
                f"request chat_template_kwargs must hold names with texts, numbers, true or false; "
                f"got {name!r}: {value!r}"
            )
    return tuple(pairs)


def _message(item: Any) -> tuple[str, str]:
    pair = (item.get("role"), _text(item.get("content"))) if isinstance(item, Mapping) else item
    is_pair = isinstance(pair, list | tuple) and len(pair) == 2
    if not is_pair or not all(isinstance(part, str) for part in pair):
        raise InvalidRequestError(
            "request chat must hold messages with a role and a content, both texts, like "
            f'{{"role": "system", "content": "..."}}; got {item!r}'
        )
    return tuple(pair)


def _text(content: Any) -> Any:
    """The text of content that is a list of text parts, as vision models have it."""
    if not isinstance(content, list | tuple) or not content:
        return content
    parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(content) else content


@dataclass(frozen=True, eq=False)
class Frame:
    """What stands around a prompt when the model reads it: nothing, or a chat template's text.

    Attributes:
        chat: None where there is none.
        before, after: what the template puts before and after the user's text.
        gap: the space that the template puts before the assistant's answer; None without chat,
            where the characters at the border decide.
    """

    tok: PreTrainedTokenizerBase
    chat: Chat | None
    before: str = ""
    after: str = ""
    gap: str | None = None

    @classmethod
    def of(cls, tok: PreTrainedTokenizerBase, chat: Chat | None) -> Frame:
        """Render it; raises ChatTemplateError if there is no template, or it rejects the chat."""
        if chat is None:
            return cls(tok, None)
        if not getattr(tok, "chat_template", None):
            raise ChatTemplateError(
                f"chat is asked for, and the tokenizer {_name(tok)} has no chat template: set "
                "tok.chat_template, or edit the plain prompt without chat"
            )
        opening = _render(tok, chat, [("user", _PROMPT)])
        if (times := opening.count(_PROMPT)) != 1:
            raise ChatTemplateError(
                f"the chat template of {_name(tok)} shows the user's text {times} times: it has to "
                "be there once, as it is, for its subject to be found"
            )
        before, after = opening.split(_PROMPT)
        return cls(tok, chat, before, after, _gap(tok, chat, opening))

    def wrap(self, text: str) -> str:
        """The text as the model reads it.

        Raises:
            ChatTemplateError: the template alters it.
        """
        whole = f"{self.before}{text}{self.after}"
        if self.chat is None or _render(self.tok, self.chat, [("user", text)]) == whole:
            return whole
        raise ChatTemplateError(
            f"the chat template of {_name(self.tok)} alters the user's text {text!r} (many strip "
            "spaces and newlines at its ends): give it as the template leaves it"
        )


def turn_end(tok: PreTrainedTokenizerBase, chat: Chat) -> str:
    """What the template puts behind an assistant's message; nothing if it cannot be told."""
    try:
        answered = [("user", _PROMPT), ("assistant", _ANSWER)]
        return _render(tok, chat, answered, answer_next=False).partition(_ANSWER)[2]
    except ChatTemplateError:
        return ""


def _gap(tok: PreTrainedTokenizerBase, chat: Chat, opening: str) -> str:
    """What is between generation prompt and assistant's message, if only spaces; else nothing."""
    try:
        answered = [("user", _PROMPT), ("assistant", _ANSWER)]
        whole = _render(tok, chat, answered, answer_next=False)
    except ChatTemplateError:
        return ""
    if not whole.startswith(opening) or _ANSWER not in whole:
        return ""
    between = whole[len(opening) : whole.index(_ANSWER)]
    return between if between.isspace() else ""


def _render(
    tok: PreTrainedTokenizerBase,
    chat: Chat,
    then: Sequence[tuple[str, str]],
    answer_next: bool = True,
) -> str:
    messages = [*chat.messages, *then]
    conversation = [{"role": role, "content": content} for role, content in messages]
    options: Any = {"add_generation_prompt": answer_next, **dict(chat.template_kwargs)}
    try:
        return str(tok.apply_chat_template(conversation, tokenize=False, **options))
    except Exception as error:  # whatever a template raises
        raise ChatTemplateError(
            f"the chat template of {_name(tok)} rejects messages with the roles "
            f"{', '.join(role for role, _ in messages)}: {error}; give chat= messages that it takes"
        ) from error


def _name(tok: PreTrainedTokenizerBase) -> str:
    path = getattr(tok, "name_or_path", "")
    return f"{path!r} ({type(tok).__name__})" if path else type(tok).__name__
