"""The tables of the studies on the real model, as lines of markdown."""

from __future__ import annotations

import json
from collections.abc import Callable

from benchmarks.support.tables import Columns, Row, read, table
from rome_fast import HealthCheck
from rome_fast.session.health import Health
from rome_fast.session.outlook import outlook

KEYS: Columns = {
    "keys / d": lambda r: f"{r['keys_per_dim']}" if r["keys_per_dim"] else "",
    "ridge": lambda r: (
        "" if r["ridge"] is None else ("auto, " * (r["shrinkage"] == "auto") + f"{r['ridge']:.2g}")
    ),
    "rewrite": lambda r: f"{100 * r['ES']:.0f}",
    "paraphrase": lambda r: f"{100 * r['PS']:.0f}",
    "neighbours": lambda r: f"{100 * r['NS']:.1f}",
    "unchanged": lambda r: f"{100 * r['unchanged']:.1f}",
    "neighbours beyond C = I": lambda r: "{:+.1f} to {:+.1f}".format(
        *(100 * x for x in r["NS_beyond_identity"])
    ),
    "norm": lambda r: f"{r['norm']:.3f}",
    "leak": lambda r: f"{r['leak']:.3f}",
    "drift, 10⁻³": lambda r: "" if r["drift"] is None else f"{1000 * r['drift']:.1f}",
}
FIRST: Columns = {
    "n": lambda r: f"{r['n']}",
    "bare prompt": lambda r: f"{100 * r['bare']:.0f}",
    "in contexts": lambda r: f"{100 * r['in contexts']:.0f}",
    "other subjects unchanged": lambda r: f"{100 * r['others']:.0f}",
    "other beginnings unchanged": lambda r: f"{100 * r['elsewhere']:.0f}",
    "norm": lambda r: f"{r['norm']:.3f}",
}

SCORES: Columns = {
    "rewrite": lambda r: f"{100 * r['ES']:.1f}",
    "paraphrase": lambda r: f"{100 * r['PS']:.1f}",
    "neighbours": lambda r: f"{100 * r['NS']:.1f}",
    "unchanged": lambda r: f"{100 * r['unchanged']:.1f}",
}
DEFAULTS: Columns = {
    "n": lambda r: f"{r['records']}",
    **SCORES,
    "paraphrase + neighbours": lambda r: f"{100 * (r['PS'] + r['NS']):.1f}",
    "norm": lambda r: f"{r['norm']:.3f}",
    "steps": lambda r: f"{r['steps']:.0f}",
}
PAIRED = ("PS", "NS", "unchanged")
CHANGES: Columns = {
    **DEFAULTS,
    **{
        f"{name} beyond the base": lambda r, name=name: (
            "{:+.1f} to {:+.1f}".format(*(100 * x for x in r[f"{name}_beyond_base"]))
            if f"{name}_beyond_base" in r
            else ""
        )
        for name in PAIRED
    },
}
SEQUENCE: Columns = {
    **SCORES,
    "perplexity": lambda r: f"{r.get('perplexity', 1):.3f}",
    "drift, KL": lambda r: f"{r.get('kl', 0):.3f}",
    "norm": lambda r: f"{r.get('norm', 0):.2f}",
    "s an edit": lambda r: f"{r['seconds']:.1f}" if "seconds" in r else "",
}
JOINT: Columns = {
    "keys / d": KEYS["keys / d"],
    "ridge": KEYS["ridge"],
    **SCORES,
    "drift, KL": SEQUENCE["drift, KL"],
    "norm": SEQUENCE["norm"],
}
# What README shows of CounterFact.
IN_README = ("unedited", "`both_keys`", "`original`", "`both_keys`, C = I")
ONLY_IN_DOCS = (
    "edit_many, all solved as one",
    "edit_many, C = I",
    "edit_many, 64 keys a dimension",
    "Session, weight, sequential",
    "Session, weight, sequential, 4 keys a dimension",
)
TIMED: Columns = {
    "seconds": lambda r: f"{r['seconds']:.1f}",
    "quartiles": lambda r: "{:.1f}-{:.1f}".format(*r["seconds_quartiles"]),
}
EDITED: Columns = {
    **SCORES,
    "magnitude": lambda r: " / ".join(
        f"{100 * r[f'{name}_magnitude']:.0f}" for name in ("ES", "PS", "NS")
    ),
    "greedy": lambda r: " / ".join(
        f"{100 * r[f'{name}_greedy']:.0f}" for name in ("ES", "PS", "NS")
    ),
    "answer begins with it": lambda r: f"{100 * r['says']:.0f}",
    "norm, median": lambda r: f"{r['norm']:.3f}" if "norm" in r else "",
}


def keys_table(layer: int) -> list[str]:
    """Every second moment of the study, the unedited model's neighbours in the head."""
    report = read(f"real-model-keys-layer{layer}")
    rows = [(cell["source"], cell) for cell in report["cells"]]
    return table(f"layer {layer}, text of C", KEYS, rows)


def first_tokens_table() -> list[str]:
    summary = read("real-model-first-tokens")["summary"]
    return table("subjects that open the prompt", FIRST, list(summary.items()))


def layers_table() -> list[str]:
    """Every layer that was tried, with the derived settings."""
    cells = [cell for cell in read("real-model-defaults")["cells"] if not cell["change"]]
    return table("layer", DEFAULTS, [(str(cell["layer"]), cell) for cell in cells])


def changes_table() -> list[str]:
    """Every change of the derived settings, beside them."""
    cells = [cell for cell in read("real-model-defaults")["cells"] if cell["change"]]
    rows = [(f"{cell['layer']}, `{json.dumps(cell['change'])}`", cell) for cell in cells]
    return table("layer, change", CHANGES, rows)


def sequence_table() -> list[str]:
    report = read("real-model-sequence")
    rows = [("unedited", report["unedited"]), *report["ways"].items()]
    return table(f"after {report['records']} edits", SEQUENCE, rows)


def sequence_in_readme() -> list[str]:
    """The rows and columns of the same that the README has room for."""
    report = read("real-model-sequence")
    columns = {**SCORES, "perplexity": SEQUENCE["perplexity"]}
    ways = [(name, row) for name, row in report["ways"].items() if name not in ONLY_IN_DOCS]
    rows = [("unedited", report["unedited"]), *ways]
    return table(f"after {report['records']} edits", columns, rows)


def joint_table() -> list[str]:
    """Many records solved as one, with more and more keys."""
    report = read("real-model-keys-joint")
    rows = [(cell["source"], cell) for cell in report["cells"]]
    return table(f"{report['records']} solved as one, text of C", JOINT, rows)


def counterfact_tables() -> list[str]:
    """This library's variants; and what others made of the first of the same records."""
    report = read("real-model-counterfact")
    variants, beside = (list(report[name].items()) for name in ("variants", "beside"))
    lines = table(f"{variants[0][1]['n']} records", EDITED, variants)
    return lines + table(f"{beside[0][1]['n']} records", {**TIMED, **EDITED}, beside)


def counterfact_in_readme() -> list[str]:
    """The rows and columns of the same that the README has room for."""
    report = read("real-model-counterfact")
    answer = {**SCORES, "answer begins with it": EDITED["answer begins with it"]}
    rows = [(name, report["variants"][name]) for name in IN_README]
    return table(f"{rows[0][1]['n']} records", answer, rows)


def _with_range(name: str, scale: float = 100, digits: int = 1) -> Callable[[Row], str]:
    """The mean over orders, and from where to where they go; "lost": against the unedited model."""

    def text(row: Row) -> str:
        where = "lost" if name.endswith(" lost") else ""
        lines = [line[where] if where else line for line in row["orders"]]
        values = [scale * line[name.removesuffix(" lost")] for line in lines]
        mean = sum(values) / len(values)
        low, high = min(values), max(values)
        if len(values) == 1 or low == high:
            return f"{mean:.{digits}f}"
        return f"{mean:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"

    return text


THOUSAND: Columns = {
    "hold": _with_range("holds"),
    "rewrite": _with_range("ES"),
    "paraphrase": _with_range("PS"),
    "neighbours lost": _with_range("NS lost"),
    "first words lost": _with_range("unchanged lost"),
    "perplexity": _with_range("perplexity", 1, 3),
    "KL": _with_range("kl", 1, 3),
    "spread": _with_range("spread", 1, 2),
}


def thousand_table() -> list[str]:
    """A Session of the weight with ever more edits, over orders; then consolidated."""
    lines = read("real-model-thousand")["lines"]
    rows = []
    for steps in (False, True):
        for n in dict.fromkeys(line["n"] for line in lines if bool(line["steps"]) is steps):
            mine = [x for x in lines if x["n"] == n and bool(x["steps"]) is steps]
            rows.append((f"{n}, consolidated" if steps else str(n), {"orders": mine}))
    return table("edits", THOUSAND, rows)


FORETOLD = ("spread", "retention", "neighbourhood", "perplexity")


def foretold_table() -> list[str]:
    """What looks foretell of the same Session, beside the next look at so many edits or more."""
    checks = [Health.from_json(check) for check in read("real-model-thousand")["checks"]]
    rows = []
    for check in checks:
        told = outlook(check, [], HealthCheck().horizon)
        came = next((c for c in checks if told and c.n_edits >= told.n_edits), None)
        if told and came:
            rows.append((str(check.n_edits), {"told": told, "came": came}))

    def both(name: str) -> Callable[[Row], str]:
        return lambda r: f"{getattr(r['told'], name):.2f}, {getattr(r['came'], name):.2f}"

    columns: Columns = {
        "foretold for, look at": lambda r: f"{r['told'].n_edits}, {r['came'].n_edits}",
        **{name: both(name) for name in FORETOLD},
    }
    return table("edits", columns, rows)
