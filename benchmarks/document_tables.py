"""Prints the documents' tables of measurements from the committed results; a test compares the two.

python -m benchmarks.document_tables
"""

from __future__ import annotations

from benchmarks.evaluate.tables import agreement_tables
from benchmarks.gpu.tables import gpu_in_readme, gpu_tables
from benchmarks.ops.tables import head_table, loss_table
from benchmarks.paper_tables import protocol_table
from benchmarks.real_model.answer_tables import (
    carried_table,
    ends_table,
    long_table,
    protocols_table,
)
from benchmarks.real_model.tables import (
    changes_table,
    counterfact_in_readme,
    counterfact_tables,
    first_tokens_table,
    foretold_table,
    joint_table,
    keys_table,
    layers_table,
    sequence_in_readme,
    sequence_table,
    thousand_table,
)
from benchmarks.session.arena_tables import (
    arena_table,
    asked_table,
    cost_of_forms_table,
    detectors_table,
    layers_of_forms_table,
    orders_table,
    plain_table,
    taken_table,
)
from benchmarks.session.policy_tables import (
    moments_table,
    policies_table,
    several_layers_table,
    values_table,
)
from benchmarks.support.tables import Columns, Row, beside, read, table, times
from benchmarks.value.tables import (
    in_sequence_table,
    searches_table,
    throughput_in_readme,
    throughput_table,
)
from rome_fast.evaluate.protocols import PROTOCOLS

SPEED: Columns = {
    "seconds": lambda r: f"{r['seconds_median']:.2f}",
    "times rome_fast": lambda r: times(r["times_rome_fast"], r["times_rome_fast_quartiles"]),
    "peak MiB": lambda r: f"{r['peak_mib']:,}",
    "cosine of ΔW": lambda r: f"{r['cosine']:.5f}",
}
ORDER: Columns = {
    "edits/s": lambda r: f"{r['edits_per_second']:.1f}",
    "rewrite": lambda r: f"{r['success_at_end']:.1f}",
    "paraphrase": lambda r: f"{r['paraphrase']:.1f}",
    "neighbours": lambda r: f"{r['neighbours']:.1f}",
    "norm": lambda r: f"{r['relative_norm']:.2f}",
    "cosine to exact": lambda r: f"{r['cosine_to_exact']:.3f}",
}
SHAPES: Columns = {
    "graphs, one by one": lambda r: f"{r['graphs']}",
    "tokens": lambda r: f"{r['tokens']:.2f}",
    "graphs, in windows": lambda r: f"{r['windows']['graphs']}",
    "tokens in windows": lambda r: f"{r['windows']['tokens']:.2f}",
}
SYRK: Columns = {
    "d": lambda r: f"{r['own']['d']:,}",
    "own, ms": lambda r: f"{r['own']['median_ms']:.0f}",
    "`addmm_` / own": lambda r: beside(r["addmm"]),
    "MKL's syrk / own": lambda r: beside(r["mkl_syrk"]),
}
FACTOR: Columns = {
    "update, ms": lambda r: f"{r['column_major']['median_ms']:.1f}",
    "row-major, ms": lambda r: f"{r['row_major']['median_ms']:.1f}",
    "`torch.linalg.cholesky`, ms": lambda r: f"{r['cholesky']['median_ms']:.0f}",
    "ratio": lambda r: beside(r["cholesky"]),
}
EVALUATION: Columns = {
    "batched": lambda r: f"{r['batched']:.1f}",
    "case by case": lambda r: f"{r['case by case']:.1f}",
    "times faster": lambda r: f"{r['ratio']:.1f}",
}
PHASES = {
    "score": "questions",
    "generate": "generations",
    "evaluation": "both",
    "edit": "the edits",
    "total": "everything",
}
SEQUENCE: Columns = {
    "rewrite": lambda r: f"{r['success']:.1f}",
    "paraphrase": lambda r: f"{r['paraphrase']:.1f}",
    "neighbours": lambda r: f"{r['neighbours']:.1f}",
    "perplexity": lambda r: f"{r['perplexity']:.3f}",
}
WAYS = {
    "kmeng01's update": "kmeng01's update (`original`)",
    "r-ROME": "r-ROME (`mean_key`)",
    "both_keys": "`both_keys`, no safeguard",
    "+ guard": "... and the guard",
    "+ anchor": "... and `anchor=16`",
    "+ retain": "... and `retain`",
    "+ stop_loss": "... and `stop_loss`",
    "Session": "`Session`, as it comes",
    "Session + anchor": "`Session`, and `anchor=16`",
}
HALVES: Columns = {
    "added one by one": lambda r: f"{r['direct']:.1%}",
    "float32 sum, rounded once": lambda r: f"{r['sum']:.2%}",
}
TRIALS: Columns = {
    "success": lambda r: f"{r['success']:.0%}",
    "paraphrases": lambda r: f"{r['paraphrase']:.0%}",
    "neighbours kept": lambda r: f"{r['locality']:.0%}",
    "score": lambda r: f"{r['score']:.0%}",
    "update / weight": lambda r: f"{r['relative_norm']:.1%}",
    "loss": lambda r: f"{r['loss']:.2f}",
}
TRACED = {"hidden": "hidden states", "mlp": "MLPs", "attn": "attentions"}
KINDS = {
    "fp32": "fp32, fp32",
    "fp32-compensated": "fp32, compensated fp32",
    "bf16-to-fp32": "bf16, fp32",
    "fp32-to-fp64": "fp32, fp64",
}


def speed_tables() -> dict[str, list[str]]:
    """One a model and layer: the implementations with a given C, then with the identity."""
    rows = [row for row in read("edit-cpu")["results"] if "cosine" in row]
    tables = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        tables[name] = table("one edit", SPEED, [(implementation(row), row) for row in mine])
    return tables


def implementation(row: Row) -> str:
    c = ", C = I" if row["c_mode"] == "C = I" else ""
    return row["implementation"] + c + ("" if row["matched"] else " (another method)")


def order_table() -> list[str]:
    return table("64 edits", ORDER, list(read("edit-order")["sequences"].items()))


def second_moment_tables() -> tuple[list[str], list[str]]:
    """Adding keys beside two rivals; updating a factor beside factoring anew."""
    sums: dict[tuple[int, str], Row] = {}
    factors: dict[tuple[int, str], Row] = {}
    for row in read("second-moment-cpu")["results"]:
        name = row["impl"].removeprefix("peer_").removeprefix("native_").replace("native", "own")
        if "kind" in row:
            sums.setdefault((row["d"], row["kind"]), {})[name] = row
        else:
            dtype = row["dtype"].removeprefix("torch.")
            factors.setdefault((row["d"], dtype), {})[name] = row
    return (
        table("keys, sum", SYRK, [(KINDS[kind], row) for (_, kind), row in sums.items()]),
        table("d, dtype", FACTOR, [(f"{d:,}, {t}", row) for (d, t), row in factors.items()]),
    )


def shapes_table() -> list[str]:
    """How many graphs requests need, as their shapes are rounded."""
    rows = read("graph-shapes")["results"]
    return table("shapes", SHAPES, [(f"{row['data']}, {row['way']}", row) for row in rows])


def evaluation_table() -> list[str]:
    seconds = read("evaluate")["seconds"]
    return table("seconds", EVALUATION, [(name, seconds[key]) for key, name in PHASES.items()])


def tracing_tables() -> list[str]:
    """What returns at the subject's last token, by layer; trial edits, also near to others."""
    report = read("tracing")
    traced = {}
    for kind, title in TRACED.items():
        part = report["windows"]["1"]["last_of_subject"][kind]
        pairs = zip(part["effect"], part["half_interval"], strict=True)
        traced[title] = [f"{effect:+.2f} ± {half:.2f}" for effect, half in pairs]
    columns = {str(i): lambda r, i=i: r[i] for i in range(6)}
    lines = table("restored in layer", columns, list(traced.items()))
    for name in ("plan", "shared token"):
        rows = [(str(trial["layer"]), trial) for trial in report[name]["trials"]]
        lines += table("edited layer", TRIALS, rows)
    return lines


def sequence_tables() -> dict[int, list[str]]:
    """All ways of editing a sequence, after 200 and after all edits."""
    report, tables = read("session-curves"), {}
    for n_edits in (200, report["edits"]):
        rows = {row["way"]: row for row in report["points"] if row["edits"] == n_edits}
        named = [(title, rows[way]) for way, title in WAYS.items()]
        one = [("one edit alone", report["alone"])]
        tables[n_edits] = table(f"after {n_edits} edits", SEQUENCE, one + named)
    return tables


def toy_forms_table() -> list[str]:
    """A Session in each form on the embedded model, after all edits."""
    report = read("session-forms")
    rows = [(f"`{r['way']}`", r) for r in report["points"] if r["edits"] == report["edits"]]
    one = [("one edit of the weight alone", report["alone"])]
    return table(f"after {report['edits']} edits", SEQUENCE, one + rows)


def options_table() -> list[str]:
    """A Session with one option changed, after all edits."""
    report = read("session-options")
    rows = [row for row in report["points"] if row["edits"] == report["edits"]]
    columns = {**SEQUENCE, "norm": lambda r: f"{r['relative_norm']:.2f}"}
    return table(f"after {report['edits']} edits", columns, [(f"`{r['way']}`", r) for r in rows])


def cost_table() -> list[str]:
    """What a Session adds to the search for v*, as a share of it."""
    overhead, lines = read("session-speed")["overhead"], []
    cases = {"embedded": "embedded model", "gpt2-124m": "GPT-2 small's shape"}
    for case, title in cases.items():
        for way in ("session", "session with looks"):
            lines.append((f"{title}, {way.replace('session', 'Session')}", overhead[case][way]))
    columns: Columns = {
        "search for v\\*, s": lambda r: f"{r['value']:.3f}",
        "added": lambda r: f"{r['added']:.1%}",
        "from, to": lambda r: "{:.1%}, {:.1%}".format(*r["added_spread"]),
    }
    return table("an edit", columns, lines)


def half_precision_table() -> list[str]:
    rows = read("half-precision")["points"]
    return table(
        "dtype, one update / weight",
        HALVES,
        [(f"{row['dtype']}, {row['share']:g}", row) for row in rows],
    )


def documents() -> dict[str, list[str]]:
    """The lines that each document has to hold."""
    speed, (sums, factors) = speed_tables(), second_moment_tables()
    sequences = sequence_tables()
    shown = speed["gpt2-124m, layer 6 of 12"] + speed["embedded model, layer 2 of 6"]
    return {
        "README.md": counterfact_in_readme()
        + sequence_in_readme()
        + throughput_in_readme()
        + gpu_in_readme(),
        "docs/benchmarks.md": shown + counterfact_tables() + protocols_table(),
        "docs/comparable.md": [line for name in PROTOCOLS for line in protocol_table(name)],
        "docs/gpu.md": gpu_tables(),
        "docs/performance.md": searches_table("value-search")
        + searches_table("value-search-contexts")
        + throughput_table(),
        "docs/many_edits.md": order_table(),
        "docs/decisions.md": sums
        + loss_table()
        + head_table()
        + searches_table("value-search-screened")
        + in_sequence_table()
        + shapes_table()
        + options_table()
        + layers_table()
        + changes_table()
        + first_tokens_table()
        + detectors_table()
        + layers_of_forms_table()
        + plain_table()
        + policies_table(80)
        + policies_table(300)
        + policies_table(1000)
        + several_layers_table()
        + values_table()
        + moments_table()
        + ends_table()
        + carried_table()
        + taken_table(),
        "docs/numerics.md": keys_table(3) + joint_table() + factors + half_precision_table(),
        "docs/forms.md": arena_table()
        + asked_table()
        + orders_table()
        + toy_forms_table()
        + cost_of_forms_table(),
        "docs/sessions.md": sequence_table()
        + thousand_table()
        + foretold_table()
        + sequences[200]
        + sequences[500]
        + cost_table(),
        "docs/evaluation.md": evaluation_table() + agreement_tables(),
        "docs/prompts.md": long_table(),
        "docs/tracing.md": tracing_tables(),
    }


def main() -> None:
    for name, lines in documents().items():
        print(f"\n{name}\n", *lines, sep="\n")


if __name__ == "__main__":
    main()
