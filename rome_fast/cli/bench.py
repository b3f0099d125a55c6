"""``rome-fast bench``: one edit of a model, timed beside other implementations on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from rome_fast.cli.common import console, load_model_or_demo, one_line_errors
from rome_fast.cli.paths import check_file
from rome_fast.cli.profile import ProfileOption, profiled
from rome_fast.errors import InvalidArgumentError
from rome_fast.hparams import RomeHparams, defaults_for
from rome_fast.model.open_model import frozen
from rome_fast.model.spec import ModelSpec
from rome_fast.moment.collect.resolve import resolve_second_moment
from rome_fast.prompt.contexts import contexts_for
from rome_fast.types import EditRequest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rome_fast.bench.case import Case

EMBEDDED_REQUEST = EditRequest("{} plays the", "Ray Charles", "violin")
NEUTRAL_REQUEST = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            help="folder or hub name of a decoder, .gguf file, or smollm2",
            show_default="the embedded one",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="a sentence with the subject, or with {} for it")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="whom or what the fact is about")] = None,
    target: Annotated[str | None, typer.Option(help="what the model shall say next")] = None,
    hparams: Annotated[
        Path | None,
        typer.Option(
            help="kmeng01 JSON, EasyEdit YAML, or kmeng01/gpt2-xl",
            show_default="the model's preset, with a v_lr so small that no search stops early",
        ),
    ] = None,
    second_moment: Annotated[
        str, typer.Option(help="a saved file, or 'identity', which every implementation knows")
    ] = "identity",
    variant: Annotated[
        str, typer.Option(help="peers know the original one and no other")
    ] = "original",
    steps: Annotated[
        int | None, typer.Option(help="of the search for v*", show_default="as the hparams say")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="another implementation's checkout; repeatable"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="timed edits of each implementation")] = 5,
    out: Annotated[Path | None, typer.Option(help="JSON file for every figure")] = None,
    profile: ProfileOption = None,
) -> None:
    """Time one edit of a model beside other implementations, and beside its arithmetic.

    Every edit is taken back; the weights keep their bits. Results are compared before anything is
    timed: only rows that match are comparable. "whole model" is the library's edit without its
    shortcuts. "by default" is the edit as it is made where nobody says how: other work for the
    same fact. MiB is the peak beyond the model, in a process of its own.
    """
    from rome_fast.bench.measure import measure
    from rome_fast.bench.own import ByDefault, RomeFast
    from rome_fast.bench.parts import measure_parts
    from rome_fast.bench.setting import setting
    from rome_fast.bench.table import (
        case_facts,
        parts_facts,
        parts_remarks,
        parts_table,
        remarks,
        row_facts,
        table_of,
    )
    from rome_fast.bench.whole_model import WholeModel

    with one_line_errors():
        check_file("--out", out)
        check_file("--profile", profile, new=True)
        loaded, tok = load_model_or_demo(model)
        request = _request(model, prompt, subject, target)
        case = _case(loaded, tok, request, _hparams(loaded, hparams, steps, variant), second_moment)
        by_default = [ByDefault()] if hparams is None else []
        comparisons = measure(case, [*by_default, WholeModel(), *(peer or [])], rounds=rounds)
        parts = measure_parts(case, comparisons[0], rounds)
        if profile is not None:
            with profiled(profile):
                RomeFast().edit(case)
        console.print(
            f"{type(loaded).__name__} layer {case.hparams.layer}, {case.hparams.variant}: "
            f"{request.text!r} -> {request.target!r}",
            markup=False,
        )
        for comparison in comparisons:
            console.print(table_of(comparison))
            for line in remarks(comparison):
                console.print(line, markup=False, soft_wrap=True)
        console.print(parts_table(parts))
        for line in parts_remarks(parts):
            console.print(line, markup=False, soft_wrap=True)
        if out is not None:
            rows = [row_facts(c, row) for c in comparisons for row in c.rows]
            report = {
                **{"setting": setting(), **case_facts(case)},
                **{"parts": parts_facts(parts), "results": rows},
            }
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _request(
    model: str | None, prompt: str | None, subject: str | None, target: str | None
) -> EditRequest:
    """The request of the options, or a default without any; a part of a request is an error."""
    if prompt is None and subject is None and target is None:
        return EMBEDDED_REQUEST if model is None else NEUTRAL_REQUEST
    if prompt is None or subject is None or target is None:
        raise InvalidArgumentError("--prompt, --subject and --target go together: give all or none")
    return EditRequest(prompt, subject, target)


def _hparams(
    model: PreTrainedModel, file: Path | None, steps: int | None, variant: str
) -> RomeHparams:
    """The file's; else the reference's search, with a v_lr so small that it never stops early."""
    if file is None:
        chosen, _ = defaults_for(ModelSpec.of(model), variant="original")
    else:
        chosen = RomeHparams.from_file(file)
    n_steps = chosen.v_num_grad_steps if steps is None else steps
    chosen = chosen.replace(v_num_grad_steps=n_steps, variant=variant)
    return chosen if file is not None else chosen.replace(v_lr=chosen.v_lr / n_steps)


def _case(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    request: EditRequest,
    hparams: RomeHparams,
    second_moment: str,
) -> Case:
    """The contexts and C that all implementations get; making them is not timed."""
    from rome_fast.bench.case import Case

    spec = ModelSpec.of(model)
    with frozen(spec):
        contexts = contexts_for(model, tok, hparams)
    return Case(
        model, tok, request, hparams, tuple(contexts), _damped(spec, tok, hparams, second_moment)
    )


def _damped(
    spec: ModelSpec,
    tok: PreTrainedTokenizerBase,
    hparams: RomeHparams,
    second_moment: str,
) -> Tensor | None:
    """C with its ridge added, [d_key, d_key], since peers add none."""
    projection = spec.down_projection(hparams.layer)
    dtype = getattr(torch, hparams.mom2_dtype)
    moment = resolve_second_moment(second_moment, spec, tok, projection, dtype)
    if moment is None:
        return None
    damped = moment.moment()
    damped.diagonal().add_(moment.ridge() * damped.diagonal().mean())
    return damped
