"""What a model says around an edit: in a chat, and after the same words about other subjects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_fast.evaluate.generation import generate
from rome_fast.explain import Finding
from rome_fast.prompt.chat import Chat
from rome_fast.prompt.request import SLOT

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.types import EditRequest

# Of several kinds: an edit that answers the same words about any of them reaches too far.
OTHER_SUBJECTS = ("France", "Japan", "Albert Einstein", "Mozart", "Microsoft", "Shakespeare")
N_TOKENS = 20


@dataclass(frozen=True)
class Answer:
    """Greedy answers to one prompt, before and after an edit.

    Attributes:
        about: whom it asks about.
        in_chat: whether as a user's message in the chat template.
    """

    about: str
    prompt: str
    in_chat: bool
    before: str
    after: str

    def __str__(self) -> str:
        same = self.before == self.after
        return f"{self.before.strip()!r} -> " + ("the same" if same else f"{self.after.strip()!r}")


class Around:
    """Reads what is asked around a request before its edit, and again after it.

    Asked are its own prompt, in a chat too where the tokenizer has a template for it, and the same
    prompt about ``others``. Generation is greedy.

    Raises:
        InvalidRequestError, ChatTemplateError: as an edit of the request.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        request: EditRequest,
        others: Sequence[str] = (),
    ) -> None:
        own = request.conversation
        asked = [(request.subject, own)]
        if own is None and getattr(tok, "chat_template", None):
            asked.append((request.subject, Chat()))
        asked += [(name, own) for name in others if name.lower() not in request.subject.lower()]
        self._about = [name for name, _ in asked]
        self._chats = [chat for _, chat in asked]
        self._prompts = [request.prompt.replace(SLOT, name) for name in self._about]
        self._ask: Callable[[], list[str]] = lambda: generate(
            model, tok, self._prompts, N_TOKENS, chats=self._chats
        )
        self._target = request.target
        self._before = self._ask()

    def after(self) -> list[Answer]:
        """The answers before beside those of the model as it is now; the edited prompt's first."""
        in_chat = [chat is not None for chat in self._chats]
        rows = zip(self._about, self._prompts, in_chat, self._before, self._ask(), strict=True)
        return [Answer(*row) for row in rows]

    def findings(self, answers: Sequence[Answer]) -> Iterator[Finding]:
        """What is wrong with them: other subjects that get the target, or begin otherwise."""
        others = [a for a in answers if a.about != answers[0].about]
        reached = [a for a in others if self._begins(a.after) > self._begins(a.before)]
        moved = [a for a in others if _first_word(a.after) != _first_word(a.before)]
        sentence = "a whole sentence as the target, " if answers[0].in_chat else ""
        remedy = f"{sentence}another layer (rome_fast.suggest_layer), or v_stop_loss=0.3"
        if reached:
            yield Finding(
                "spills",
                f"the same prompt about {_names(reached)} is answered with the target now, too",
                "the edit is of the words of the prompt more than of its subject",
                remedy,
            )
        elif moved:
            yield Finding(
                "others change",
                f"the same prompt about {_names(moved)} is answered otherwise: {moved[0]}",
                "the keys of these subjects get a share of the edit",
                remedy,
            )

    def _begins(self, said: str) -> bool:
        return said.strip().lower().startswith(self._target.strip().lower())


def _first_word(text: str) -> str:
    return " ".join(text.split()[:1])


def _names(answers: Sequence[Answer]) -> str:
    return ", ".join(answer.about for answer in answers)
