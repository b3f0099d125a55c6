"""What is asked for: one fact to change, in a text or in a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, asdict, dataclass
from typing import Any

from rome_fast.errors import InvalidRequestError, SubjectNotFoundError
from rome_fast.prompt.chat import Chat, split_messages, template_kwargs_of
from rome_fast.prompt.subject import cuts_a_word, find_subject, nearest

SLOT = "{}"
_SAID_OR_NOT = ("space", "chat_template_kwargs", "aliases", "end")


@dataclass(frozen=True)
class EditRequest:
    """One fact to change: after the edit, ``prompt`` with the subject in it continues ``target``.

    A single ``{}`` in a prompt or a context is always a slot, and no other may be there; other
    braces are ordinary text. Nothing is passed through ``str.format``.

    Attributes:
        prompt: a template with one ``{}`` where the subject goes, or a text that contains the
            subject (its last occurrence is taken, whole words before parts of longer ones), or a
            list of messages whose last one is the user's and holds the text. Kept as the template.
        subject: whom or what the fact is about; may be left out if ``span`` is given.
        target: the text that shall follow.
        chat: True puts the prompt through the tokenizer's chat template, as a message of the
            user; a list of messages (``{"role": ..., "content": ...}``) also puts these before it.
            Kept as a tuple of (role, content) pairs, None for a plain prompt.
        chat_template_kwargs: what the chat template is given beside the messages, like
            ``{"enable_thinking": False}``. Kept as a tuple of pairs, None for nothing.
        span: (start, end), the characters of the prompt that are the subject. Not kept.
        space: whether a space stands before the target; None as text would have it there.
        aliases: other ways of writing the subject, which edits that only fire for their subject
            (``form="neuron"`` or ``"gate"``) answer to as well. Kept as a tuple.
        end: what the model shall write behind the target: "auto", what it writes itself where the
            sentence can end there; "none"; "eos", the end of the text, or of the turn in a chat; or
            a text. None: as ``RomeHparams.end`` says.

    Raises:
        SubjectNotFoundError: no ``{}`` in the prompt and the subject is not in it either.
        InvalidRequestError: empty subject or target, more than one ``{}``, an invalid span or one
            that holds another text than the subject, or malformed messages.
    """

    prompt: str
    subject: str = ""
    target: str = ""
    chat: Any = None
    span: InitVar[tuple[int, int] | None] = None
    space: bool | None = None
    chat_template_kwargs: Any = None
    aliases: Any = ()
    end: str | None = None
    # Not a field: no part of what is asked.
    _is_respelled = False

    def __post_init__(self, span: Any) -> None:
        prompt, chat = split_messages(self.prompt, self.chat)
        _check_text("prompt", prompt)
        if span is None or self.subject != "":
            _check_text("subject", self.subject)
        _check_text("target", self.target)
        if not isinstance(self.space, bool | None):
            raise InvalidRequestError(
                f"request space must be true, false or nothing, got {self.space!r}"
            )
        if self.end is not None:
            _check_text("end", self.end, may_be_blank=True)
        # Spaces around a subject belong to the prompt; one before the target is added by encode.
        subject = self.subject.strip()
        if span is not None:
            template, subject = _cut(prompt, subject, span)
        else:
            template, found = _as_template(prompt, subject)
            object.__setattr__(self, "_is_respelled", found != subject)
            subject = found
        kwargs = template_kwargs_of(self.chat_template_kwargs)
        kept = {
            "prompt": template,
            "subject": subject,
            "chat": chat,
            "chat_template_kwargs": kwargs,
            "aliases": _aliases_of(self.aliases, subject),
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    @property
    def text(self) -> str:
        """The prompt with the subject filled in; of a chat, the user's text alone."""
        return self.prompt.replace(SLOT, self.subject, 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The ways of writing its subject."""
        return (self.subject, *self.aliases)

    @property
    def conversation(self) -> Chat | None:
        """The messages before the prompt, and what the template is given; None for plain text."""
        return None if self.chat is None else Chat(self.chat, self.chat_template_kwargs or ())

    @property
    def asked(self) -> str:
        """The prompt as it is shown to people: ``text``, marked where it is asked in a chat."""
        if self.chat is None:
            return self.text
        roles = ", ".join(role for role, _ in self.chat)
        return f"chat after {roles}: {self.text}" if roles else f"chat: {self.text}"

    def __str__(self) -> str:
        return f"{self.asked!r} -> {self.target.strip()!r}"

    def same_fact(self, other: EditRequest) -> bool:
        """Whether both are about one subject in one prompt, in one chat or none.

        The targets may differ.
        """
        return self.fact == other.fact

    def same_subject(self, other: EditRequest) -> bool:
        """Whether both have a name of their subjects in common."""
        return not set(self.names).isdisjoint(other.names)

    @property
    def fact(self) -> tuple[Any, ...]:
        """Hashable key of the fact, whatever its target; spaces in the prompt do not count."""
        return self.subject, self.conversation, tuple(self.prompt.split())

    def to_json(self) -> dict[str, Any]:
        """What ``EditRequest(**fields)`` makes it of again, without what is not said."""
        fields = asdict(self)
        return {k: v for k, v in fields.items() if k not in _SAID_OR_NOT or v not in (None, ())}

    def findings(self) -> list[str]:
        """Remarks for the user about the request."""
        remarks = []
        if self.chat is None and self.chat_template_kwargs:
            remarks.append("chat_template_kwargs have no effect without chat")
        if self._is_respelled:
            remarks.append(
                f"the prompt writes the subject {self.subject!r} in another normal form of Unicode "
                "(NFC, NFD): it is taken as the prompt has it"
            )
        start = self.prompt.index(SLOT)
        if cuts_a_word(self.text, (start, start + len(self.subject))):
            remarks.append(f"subject {self.subject!r} is a part of a word of {self.text!r}")
        return remarks

    @classmethod
    def parse(cls, request: EditRequest | Mapping[str, Any]) -> EditRequest:
        """Accept an EditRequest, kmeng01/rome's request dict, EasyEdit's, or a CounterFact record.

        Keys that only evaluation needs are ignored.
        """
        if isinstance(request, EditRequest):
            return request
        if isinstance(request, Mapping):
            # A CounterFact record holds its request under this key.
            request = request.get("requested_rewrite", request)
        if not isinstance(request, Mapping):
            raise InvalidRequestError(
                f"request must be an EditRequest or a dict, got {type(request).__name__}: "
                f"{request!r}"
            )
        target = request.get("target_new", request.get("target"))
        if isinstance(target, Mapping):
            target = target.get("str")
        span = request.get("span")
        prompt: Any = request.get("prompt")
        subject: Any = request.get("subject", None if span is None else "")
        found = {"prompt": prompt, "subject": subject, "target_new": target}
        missing = [name for name, value in found.items() if value is None]
        if missing:
            raise InvalidRequestError(
                f"request lacks {', '.join(missing)}; got keys {sorted(map(str, request))}"
            )
        said = {name: request.get(name) for name in ("chat", "span", *_SAID_OR_NOT)}
        aliases: Any = said.pop("aliases") or ()
        return cls(prompt, subject, target, aliases=aliases, **said)


def _check_text(name: str, value: Any, may_be_blank: bool = False) -> None:
    if not isinstance(value, str):
        raise InvalidRequestError(
            f"request {name} must be a string, got {type(value).__name__}: {value!r}"
        )
    if not (value if may_be_blank else value.strip()):
        raise InvalidRequestError(f"request {name} is empty: {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"request {name} holds half of a character ({error.object[error.start]!r} at "
            f"{error.start}), which no tokenizer takes: {value!r}"
        ) from error


def _aliases_of(given: Any, subject: str) -> tuple[str, ...]:
    """The other ways of writing the subject, stripped, each once."""
    if isinstance(given, str) or not isinstance(given, list | tuple):
        raise InvalidRequestError(
            f"request aliases must be a list of strings, got {given!r}: other ways of writing "
            f"{subject!r}"
        )
    for alias in given:
        _check_text("aliases", alias)
        _check_subject(alias)
    return tuple(dict.fromkeys(name for a in given if (name := a.strip()) != subject))


def _cut(prompt: str, subject: str, span: Any) -> tuple[str, str]:
    """(template, subject) from a text and the span of its subject."""
    is_pair = isinstance(span, list | tuple) and [type(x) for x in span] == [int, int]
    if not is_pair or not 0 <= span[0] < span[1] <= len(prompt):
        raise InvalidRequestError(
            f"request span must be (start, end) with 0 <= start < end <= {len(prompt)}, the length "
            f"of the prompt; got {span!r}"
        )
    start, end = span
    named = prompt[start:end].strip()
    if not named or subject not in ("", named):
        raise InvalidRequestError(
            f"request span {(start, end)} holds {prompt[start:end]!r}, and the subject is "
            f"{subject!r}: give one of them, or make them agree"
        )
    start += prompt[start:end].index(named)
    if SLOT in prompt:
        raise InvalidRequestError(
            f"request prompt holds '{{}}' beside the span of {named!r}, which would be read as the "
            f"place of a subject: write it with a space inside: {prompt!r}"
        )
    return prompt[:start] + SLOT + prompt[start + len(named) :], named


def _as_template(prompt: str, subject: str) -> tuple[str, str]:
    """(template, subject as the prompt spells it)."""
    _check_subject(subject)
    slots = prompt.count(SLOT)
    if slots == 1:
        return prompt, subject
    if slots > 1:
        raise InvalidRequestError(
            f"request prompt holds {slots} slots '{{}}', exactly one is needed: {prompt!r}"
        )
    place = find_subject(prompt, subject)
    if place is None:
        raise SubjectNotFoundError(
            f"subject {subject!r} is not in prompt {prompt!r} and the prompt has no '{{}}'"
            f"{nearest(prompt, subject)}"
        )
    start, end = place
    return prompt[:start] + SLOT + prompt[end:], prompt[start:end]


def _check_subject(subject: str) -> None:
    if SLOT in subject:
        raise InvalidRequestError(
            f"request subject holds '{{}}', which is read as the place of a subject: {subject!r}"
        )
