"""One edit and everything that it is judged by, whatever file it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rome_fast.errors import InvalidRequestError
from rome_fast.prompt.chat import Chat
from rome_fast.types import EditRequest

# The portability group whose questions all ask one thing: one that is answered right is enough.
MULTI_HOP = "multi_hop"


@dataclass(frozen=True)
class Question:
    """A prompt without its answer, and the answer: what should follow, or be as likely as before.

    ``chat`` is the conversation before the prompt, None for a plain one, and ``space`` says whether
    a space precedes the answer, as in a request.
    """

    prompt: str
    target: str
    chat: Chat | None = None
    space: bool | None = None

    @classmethod
    def of(cls, request: EditRequest) -> Question:
        """The edited prompt, in the chat that it was edited in, and the new target."""
        return cls(request.text, request.target, request.conversation, request.space)


@dataclass(frozen=True)
class EditRecord:
    """One edit and what it is judged by; only the request has to be there.

    Attributes:
        case_id: as in its file, else its position there.
        request: what to edit.
        target_true: the true answer to the request's prompt, if known.
        paraphrases: full prompts that should go on with the new target too.
        neighborhood: prompts about other subjects, with the answers that they should keep.
        locality, portability: by the name of the group (EasyEdit), prompts whose answer must not
            change, and prompts whose answer follows from the edit.
        generation_prompts: where free generations start.
        reference_texts: texts about the new target, that generations are compared with.
        question: how one asks for the fact, where that is not the edited prompt; for protocols that
            let the model answer.
        also: records of further edits, made together with this one. What they are judged by is
            asked too, all of it is one case, and without one of the edits none is made. They have
            no ``also`` of their own.

    Raises:
        InvalidRequestError: ``also`` holds something else, or a record with its own.
    """

    case_id: int | str
    request: EditRequest
    target_true: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[Question, ...] = ()
    locality: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    portability: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    generation_prompts: tuple[str, ...] = ()
    reference_texts: tuple[str, ...] = ()
    question: str | None = None
    also: tuple[EditRecord, ...] = ()

    def __post_init__(self) -> None:
        for record in self.also:
            if not isinstance(record, EditRecord) or record.also:
                raise InvalidRequestError(
                    f"also must hold EditRecords without an also of their own, got {record!r:.200}"
                )

    @property
    def facts(self) -> tuple[EditRecord, ...]:
        """This record and those whose edits are made with its."""
        return (self, *self.also)

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """All that is to be edited."""
        return tuple(fact.request for fact in self.facts)

    @property
    def rewrite(self) -> Question:
        """The edited prompt itself, and the new target."""
        return Question.of(self.request)


class Records(list[EditRecord]):
    """A list of EditRecords that knows how many of its source could not be read.

    Attributes:
        n_skipped: how many were left out as bad; an evaluation counts them as failures.
    """

    def __init__(self, records: Iterable[EditRecord], n_skipped: int = 0) -> None:
        super().__init__(records)
        self.n_skipped = n_skipped
