"""Whose rules a number follows: what is asked, how it is decoded, where it stops, who judges.

Definitions and sources: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rome_fast.errors import InvalidArgumentError
from rome_fast.evaluate.records import EditRecord, Question
from rome_fast.evaluate.result import Reading
from rome_fast.prompt.answers import Answer
from rome_fast.prompt.chat import Chat

# Kinds of answers that each judge by words calls right.
JUDGES = {"exact": ("exact",), "contained": ("exact", "contained")}
# The name of one, or (question, answer, target) -> whether it is right.
Verdict = str | Callable[[str, str, str], bool]

# How a question is put, of the protocols that let the model answer, and what an answer may take.
CONTEXTS = {
    "question": "{}",
    "qa": "Please answer the question:\n\nQ: {}\nA:",
    "one_shot": "Question: What is the capital of Italy?\nAnswer: Rome.\n\nQuestion: {}\nAnswer:",
    "chat": "{}",
}
ANSWER_TOKENS = 50
GROUPS = ("rewrite", "rephrase", "neighborhood")


@dataclass(frozen=True)
class Protocol:
    """How a paper measures.

    Attributes:
        source: whose it is.
    """

    name: str
    prompts: str
    decoding: str
    stop: str
    judge: str
    source: str


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "rome",
            "the edited prompt, paraphrases, neighbours; each with either object",
            "none: both objects are read with teacher forcing",
            "with the object",
            "the lower NLL a token",
            "Meng et al., arXiv 2202.05262",
        ),
        Protocol(
            "easyedit",
            "the edited prompt, paraphrases, neighbours, locality and portability",
            "none: the target is read with teacher forcing",
            "with the target",
            "share of its tokens that are the likeliest",
            "EasyEdit, arXiv 2308.07269",
        ),
        Protocol(
            "strict",
            "the edited prompt, paraphrases, neighbours",
            "greedy",
            "after as many tokens as the target has",
            "all of them are the target's",
            "AlphaEdit, arXiv 2410.02355; EAMET, arXiv 2505.11876",
        ),
        Protocol(
            "wild",
            "the edited prompt, paraphrases, neighbours, as questions",
            "greedy, 50 tokens at most",
            "with a sentence, a line, or an end token",
            "the same words as the target, but for case, punctuation and articles",
            "Yang et al., arXiv 2502.11177",
        ),
    )
}


def chosen(protocol: str | Sequence[str]) -> tuple[str, ...]:
    """Names of protocols: one, several with commas between them, or a list of them.

    Raises:
        InvalidArgumentError: there is none, or an unknown one.
    """
    given = protocol.split(",") if isinstance(protocol, str) else protocol
    names = tuple(dict.fromkeys(name.strip() for name in given if isinstance(name, str)))
    unknown = [name for name in names if name not in PROTOCOLS]
    if not names or unknown or len(names) < len(set(map(str, given))):
        raise InvalidArgumentError(
            f"protocol must be one or more of {', '.join(PROTOCOLS)}, got {protocol!r}"
        )
    return names


def check_context(context: str) -> None:
    """Raise InvalidArgumentError unless it says how a question is put."""
    if not isinstance(context, str) or (context not in CONTEXTS and context.count("{}") != 1):
        raise InvalidArgumentError(
            f"context must be one of {', '.join(CONTEXTS)}, or a text with one '{{}}' for the "
            f"question; got {context!r}"
        )


@dataclass(frozen=True)
class Rules:
    """What an evaluation asks.

    Attributes:
        protocols: by name.
        context: of questions that the model answers by itself; one of CONTEXTS, or a text with
            "{}" for the question.
    """

    protocols: tuple[str, ...]
    context: str = "qa"

    @property
    def lets_answer(self) -> bool:
        """Whether the model is to answer by itself."""
        return "wild" in self.protocols

    def questions(self, record: EditRecord) -> list[tuple[str, Question, str]]:
        """(group, question, the prompt as it is put) of a record."""
        new, chat = record.request.target, record.request.conversation
        rewrite = record.rewrite
        if record.question is not None:
            rewrite = replace(rewrite, prompt=record.question)
        if chat is None and self.context == "chat":
            chat = Chat()
        asked = [("rewrite", replace(rewrite, chat=chat))]
        asked += [("rephrase", Question(text, new, chat)) for text in record.paraphrases]
        asked += [("neighborhood", replace(q, chat=chat)) for q in record.neighborhood]
        context = "{}" if chat is not None else CONTEXTS.get(self.context, self.context)
        return [(group, q, context.replace("{}", q.prompt.strip())) for group, q in asked]

    def reading(self, group: str, question: Question, prompt: str, answer: Answer) -> Reading:
        """An answer, judged by its words."""
        kind = answer.is_to(question.target)
        return Reading(
            group, question.prompt, prompt, question.target, answer.text, kind, kind == "exact"
        )


def check_judge(judge: Verdict) -> None:
    """Raise InvalidArgumentError unless it can judge."""
    if not callable(judge) and judge not in JUDGES:
        raise InvalidArgumentError(
            f"judge must be one of {', '.join(JUDGES)}, or (question, answer, target) -> bool; got "
            f"{judge!r:.60}"
        )


def verdict(judge: Verdict, question: str, answer: Answer, target: str) -> bool:
    """What a judge says.

    Raises:
        InvalidArgumentError: it has raised, or has returned no bool.
    """
    if isinstance(judge, str):
        return answer.is_to(target) in JUDGES[judge]
    try:
        said = judge(question, answer.text, target)
    except Exception as error:  # whatever a judge raises
        raise InvalidArgumentError(
            f"judge= has raised {type(error).__name__}: {error}, for question {question[:60]!r}"
        ) from error
    if not isinstance(said, bool):
        raise InvalidArgumentError(
            f"judge= must return true or false, got {said!r:.60} for question {question[:60]!r}"
        )
    return said
