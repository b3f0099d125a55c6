"""How answers end, as tables of markdown."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.real_model.tables import SCORES
from benchmarks.support.tables import Columns, Row, read, table

NAMED = {"default": "default", "original": '`"original"`', "auto": 'default, `end="auto"`'}
FORMS = ("sentence", "all contexts", "chat", "question", "end, thrice", "end, a third")
NAMES = {"none": '`"none"`', "auto": '`"auto"`', ".": '`"."`', "eos": '`"eos"`'}


def _share(setting: str, name: str) -> Callable[[Row], str]:
    return lambda r: f"{100 * r['answers'][setting][name]:.0f}"


ENDS: Columns = {
    **SCORES,
    "said": _share("completion", "truncated"),
    "... and no more": _share("completion", "natural"),
    "asked: said": _share("question", "truncated"),
    "asked: ... and no more": _share("question", "natural"),
    "chat: in the answer": _share("chat", "contained"),
    "steps": lambda r: f"{r['steps']:.1f}" if "steps" in r else "",
}


def _interval(name: str) -> Callable[[Row], str]:
    def shown(row: Row) -> str:
        metric = row["metrics"].get(name)
        if metric is None:
            return ""
        half = 100 * (metric["high"] - metric["mean"])
        return f"{100 * metric['mean']:.1f} ± {half:.1f}"

    return shown


PROTOCOLS: Columns = {
    "ES": _interval("ES"),
    "PS": _interval("PS"),
    "NS": _interval("NS"),
    "`easyedit` rewrite": _interval("rewrite_acc"),
    "paraphrase": _interval("rephrase_acc"),
    "`strict` rewrite": _interval("rewrite_exact"),
    " paraphrase": _interval("rephrase_exact"),
    "`wild` question": _interval("wild_rewrite"),
    "  paraphrase": _interval("wild_rephrase"),
    "question: begins with it": lambda r: f"{100 * r['begun']:.0f}" if "begun" in r else "",
    "... and no more": lambda r: (
        f"{100 * r['natural_of_begun']:.0f}" if "natural_of_begun" in r else ""
    ),
}
CARRIED: Columns = {
    "facts": lambda r: str(r["n"]),
    **SCORES,
    "said": _share("sentence", "begun"),
    "... and no more": lambda r: _natural(r, "sentence"),
    "to a question": _share("question", "held"),
    " ... and no more": lambda r: _natural(r, "question"),
    "instructed": _share("instructed", "held"),
    "in a chat": _share("chat", "held"),
    "s": lambda r: f"{r['seconds']:.1f}" if "seconds" in r else "",
}
LONG: Columns = {
    "exact": lambda r: f"{100 * r['exact']:.0f}",
    "tokens right": lambda r: f"{100 * r['tokens']:.0f}",
    "steps": lambda r: f"{r['steps']:.1f}",
}


def _natural(row: Row, setting: str) -> str:
    """Of the answers that begin with the target, those that are nothing else."""
    asked = row["answers"][setting]
    return f"{100 * asked['exact'] / asked['begun']:.0f}" if asked["begun"] else ""


def protocols_table() -> list[str]:
    """The four protocols over the same edits, beside the unedited model."""
    report = read("real-model-protocols")
    rows = [("unedited", {"metrics": report["lines"][0]["metrics"]["before"]})]
    for line in sorted(report["lines"], key=lambda line: list(NAMED).index(line["way"])):
        rows.append((NAMED[line["way"]], {**line, "metrics": line["metrics"]["after"]}))
    return table("edits", PROTOCOLS, rows)


def carried_table() -> list[str]:
    """Edits made in one form or in all, asked in each; the unedited model's own facts first."""
    report = read("real-model-carry-over")
    own = report["unedited"]
    rows = [("the model's own facts", {**own, "answers": own["true"], "n": report["records"]})]
    lines = sorted(report["lines"], key=lambda line: FORMS.index(line["way"]))
    rows += [(line["way"], {**line, "answers": line["asked"]}) for line in lines]
    return table("edited as", CARRIED, rows)


def long_table() -> list[str]:
    """What one value vector holds, by the target's length."""
    rows = []
    for line in read("real-model-long-targets")["lines"]:
        name = f"{line['length']} tokens, layer {line['layer']}"
        if line["chunk"]:
            name += f", in parts of {line['chunk']}"
        if "v_num_grad_steps" in line:
            name += f", {line['v_num_grad_steps']} steps"
        if "clamp_norm_factor" in line:
            name += f", clamp {line['clamp_norm_factor']:.0f}"
        rows.append((name, line))
    return table("target", LONG, rows)


def ends_table() -> list[str]:
    """Each kind of end, beside the unedited model."""
    report = read("real-model-ends")
    rows = [("unedited", report["unedited"])]
    rows += [(NAMES[line["way"]], line) for line in report["lines"]]
    return table("end", ENDS, rows)
