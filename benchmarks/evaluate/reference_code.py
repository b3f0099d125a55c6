"""What the authors' own evaluation code says of a model, each run from a checkout of it.

Nothing of theirs is part of this project. What is replaced while it runs, and why; its files stay
as they are:

- What it imports and this does not call (NLTK, SciPy, scikit-learn, OpenAI, editors, its globals
  that come from a file in the current folder) are stubs while importing.
- It names "cuda" for the tokenizer's batches, which stay on the CPU.
- WILD's generates without a cache of keys and values: here with one, for the same tokens sooner.

The tokenizer is a copy with what its callers set up: a padding token, and padding on the right.
"""

from __future__ import annotations

import io
import json
import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import transformers

from rome_fast.bench.peers.harness import tokenizer_for_peer
from rome_fast.bench.peers.isolate import commit_of, import_modules, require_files, stub
from rome_fast.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.evaluate.records import EditRecord, Question

Row = dict[str, Any]


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """While open, a batch of a tokenizer stays where it is."""
    with mock.patch.object(transformers.BatchEncoding, "to", lambda self, *_, **__: self):
        yield


def _unused() -> list[ModuleType]:
    """Stand-ins of packages that figures compared here do not need."""
    return [
        stub("nltk"),
        stub("scipy"),
        stub("scipy.stats", hmean=statistics.harmonic_mean),
        stub("sklearn"),
        stub("sklearn.metrics", f1_score=None),
        stub("sklearn.feature_extraction"),
        stub("sklearn.feature_extraction.text", TfidfVectorizer=None),
        stub("openai", OpenAI=None),
    ]


class Kmeng01Code:
    """kmeng01/rome: ``eval_utils_counterfact``, ``eval_utils_zsre`` and ``summarize``."""

    name = "kmeng01"

    def __init__(self, root: Path) -> None:
        files = ("experiments/py/eval_utils_counterfact.py", "experiments/summarize.py")
        require_files(self.name, root, files, "kmeng01/rome")
        self.commit = commit_of(root, ("experiments",)) or "unknown commit"
        packages = {
            "experiments": "experiments",
            "experiments.py": "experiments/py",
            "util": "util",
        }
        self._counterfact, self._zsre, self._summarize = import_modules(
            self.name,
            {name: root.joinpath(*name.split(".")) for name in packages},
            [
                *_unused(),
                stub("dsets", AttributeSnippets=None),
                stub("util.generate", generate_fast=None),
                stub("util.perplexity", perplexity=None),
                stub("util.globals"),
            ],
            [
                "experiments.py.eval_utils_counterfact",
                "experiments.py.eval_utils_zsre",
                "experiments.summarize",
            ],
        )

    def counterfact(
        self, model: PreTrainedModel, tok: PreTrainedTokenizerBase, record: EditRecord
    ) -> Row:
        """NLLs of both objects a prompt, without generations."""
        own, raw = tokenizer_for_peer(tok), _counterfact_layout(record)
        with on_the_cpu():
            found: Row = self._counterfact.compute_rewrite_quality_counterfact(
                model, own, raw, None, None
            )
        return found

    def zsre(self, model: PreTrainedModel, tok: PreTrainedTokenizerBase, record: EditRecord) -> Row:
        """Whether each token of each answer is the likeliest; neighbours as in its data set."""
        own, raw = tokenizer_for_peer(tok), _counterfact_layout(record)
        raw["neighborhood_prompts"] = [
            {"prompt": f"{question.prompt}{own.decode(ids[:i])}", "target": own.decode(ids[i])}
            for question in record.neighborhood
            for ids in [own(f" {question.target}")["input_ids"]]
            for i in range(len(ids))
        ]
        with on_the_cpu():
            found: Row = self._zsre.compute_rewrite_quality_zsre(model, own, raw, None, None)
        return found

    def summary(self, cases: Sequence[Row]) -> dict[str, list[float]]:
        """The figures of each case, by its names."""
        with TemporaryDirectory() as folder:
            run = Path(folder) / "run_000"
            run.mkdir()
            for number, post in enumerate(cases):
                case = {"case_id": number, "time": 0.0, "post": post}
                (run / f"case_{number}.json").write_text(json.dumps(case))
            with redirect_stdout(io.StringIO()):
                found: dict[str, list[float]]
                [found] = self._summarize.main(
                    Path(folder), None, get_uncompressed=True, abs_path=True
                )
        return found


class EasyEditCode:
    """zjunlp/EasyEdit: ``compute_edit_quality``, and its editor's comparison of locality."""

    name = "easyedit"
    hparams = SimpleNamespace(alg_name="ROME", max_length=40)

    def __init__(self, root: Path) -> None:
        files = ("easyeditor/evaluate/evaluate.py", "easyeditor/editors/editor.py")
        require_files(self.name, root, files, "zjunlp/EasyEdit")
        self.commit = commit_of(root, ("easyeditor",)) or "unknown commit"
        # Its editor labels each figure with the kind that it is of.
        labels = dict.fromkeys(("attach_metric_meta", "build_locality_metric_meta"), _nothing)
        quality, self._editor = _import_easyeditor(
            self.name, root, ["evaluate.evaluate", "editors.editor"], **labels
        )
        self._quality = quality.compute_edit_quality

    def quality(
        self, model: PreTrainedModel, tok: PreTrainedTokenizerBase, record: EditRecord
    ) -> Row:
        """Accuracies a prompt, and of locality the likeliest tokens."""
        asked = _easyedit_layout(record)
        with on_the_cpu():
            found: Row = self._quality(
                model, "", self.hparams, tokenizer_for_peer(tok), asked, "cpu"
            )
        return found

    def add_locality(self, before: Row, after: Row, record: EditRecord) -> None:
        """Add to ``after`` the shares of ``<group>_output`` that are those of ``before``."""
        metric = {"pre": before, "post": after}
        self._editor.finalize_locality_metrics(metric, _easyedit_layout(record), self.hparams, "")


class WildCode:
    """WanliYoung/Revisit-Editing-Evaluation, which judges by exact match without an API key."""

    name = "wild"
    contexts = MappingProxyType({"question": "question-only", "qa": "qa_inst"})

    def __init__(self, root: Path) -> None:
        source = "WanliYoung/Revisit-Editing-Evaluation"
        require_files(self.name, root, ("easyeditor/evaluate/evaluate.py",), source)
        self.commit = commit_of(root, ("easyeditor",)) or "unknown commit"
        self._quality, utils = _import_easyeditor(
            self.name, root, ["evaluate.evaluate", "evaluate.evaluate_utils"]
        )
        self.is_same: Callable[[str, str], bool] = utils.exact_match_score

    def answer(
        self, model: PreTrainedModel, tok: PreTrainedTokenizerBase, question: Question, context: str
    ) -> tuple[bool, str]:
        """Whether the answer to a question is right, and the answer."""
        hparams = SimpleNamespace(
            alg_name="ROME", evaluation_type="WILD", context_type=self.contexts[context]
        )
        shared = (model, "", hparams, tokenizer_for_peer(tok))
        with on_the_cpu(), mock.patch.object(model, "generate", _with_cache(model.generate)):
            found = self._quality.compute_rewrite_or_rephrase_quality(
                *shared, question.prompt, question.target, "cpu"
            )
        return bool(found["rewrite_acc"]), found["rewrite_gen_content"]


def _import_easyeditor(
    name: str, root: Path, wanted: Sequence[str], **exported: Callable[..., None]
) -> list[ModuleType]:
    """Modules of a package ``easyeditor``, whose ``__init__`` imports all of its editors."""
    top = root / "easyeditor"
    outside = ("compute_edit_quality", "compute_icl_edit_quality", "compute_sent_metric")
    return import_modules(
        name,
        {"easyeditor": top, "easyeditor.editors": top / "editors"},
        [
            *_unused(),
            stub("easyeditor.models"),
            stub("easyeditor.models.melo"),
            stub("easyeditor.models.melo.melo", LORA=type("LORA", (), {})),
            stub("easyeditor.trainer"),
            stub("easyeditor.util", HyperParams=None, __path__=[str(top / "util")]),
            stub("easyeditor.util.generate", generate_fast=None),
            stub("easyeditor.util.globals", logging=logging),
            stub("easyeditor.util.alg_dict"),
            stub(
                "easyeditor.evaluate",
                __path__=[str(top / "evaluate")],
                **dict.fromkeys(outside),
                **exported,
            ),
        ],
        [f"easyeditor.{module}" for module in wanted],
    )


def _with_cache(generate: Any) -> Callable[..., Any]:
    return lambda **arguments: generate(**{**arguments, "use_cache": True})


def _nothing(*_: object) -> None:
    pass


def _counterfact_layout(record: EditRecord) -> Row:
    request = record.request
    return {
        "requested_rewrite": {
            "prompt": request.prompt,
            "subject": request.subject,
            "target_new": {"str": request.target},
            "target_true": {"str": record.target_true},
        },
        "paraphrase_prompts": list(record.paraphrases),
        "neighborhood_prompts": [question.prompt for question in record.neighborhood],
        "attribute_prompts": [],
        "generation_prompts": [],
    }


def _easyedit_layout(record: EditRecord) -> Row:
    """One paraphrase, as its data sets have; a list would be asked with the target's letters."""
    layout: Row = {
        "prompt": record.request.text,
        "target_new": record.request.target,
        "ground_truth": record.target_true,
        "locality": {name: _lists(group) for name, group in record.locality.items()},
        "portability": {name: _lists(group) for name, group in record.portability.items()},
    }
    if record.paraphrases:
        layout["rephrase_prompt"] = record.paraphrases[0]
    return layout


def _lists(group: Sequence[Question]) -> dict[str, list[str]]:
    prompts, answers = [q.prompt for q in group], [q.target for q in group]
    return {"prompt": prompts, "ground_truth": answers}


_CODES = {code.name: code for code in (Kmeng01Code, EasyEditCode, WildCode)}


def load_code(spec: str) -> Kmeng01Code | EasyEditCode | WildCode:
    """The code that ``"NAME=PATH"`` names.

    Raises:
        InvalidArgumentError: the name is unknown, or the folder is no checkout of it.
    """
    name, _, path = spec.partition("=")
    if name not in _CODES or not path:
        raise InvalidArgumentError(
            f"peer {spec!r} must be one of {', '.join(f'{known}=PATH' for known in _CODES)}"
        )
    return _CODES[name](Path(path).expanduser())
