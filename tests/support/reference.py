"""Evaluation case by case, in the plainest way: one edit, a forward per prompt and target, revert.

Of rome_fast.evaluate only the record is used. Values have the names of docs/metrics.md.
"""

from __future__ import annotations

import math
import statistics

import torch

import rome_fast
from rome_fast.errors import RomeFastError


@torch.no_grad()
def ask(model, tok, prompt, target):
    """(mean NLL per token, probability, [argmax ids], [target ids]) of one forward."""
    target = target if target.startswith(" ") else " " + target
    ids = tok(prompt.rstrip(" ") + target)["input_ids"]
    n = len(tok(prompt.rstrip(" "))["input_ids"])
    logits = model(torch.tensor([ids])).logits[0, n - 1 : -1].double()
    log_probs = [float(row.log_softmax(0)[i]) for row, i in zip(logits, ids[n:], strict=True)]
    nll = -sum(log_probs) / len(log_probs)
    return nll, math.exp(sum(log_probs)), logits.argmax(-1).tolist(), ids[n:]


def answers(model, tok, record):
    """Every answer that the values are computed from: name -> list of ``ask``."""
    new, true = record.request.target, record.target_true
    out = {"E": [ask(model, tok, record.request.text, new)]}
    out["P"] = [ask(model, tok, text, new) for text in record.paraphrases]
    out["N"] = [ask(model, tok, q.prompt, q.target) for q in record.neighborhood]
    if true is not None:
        out["E_other"] = [ask(model, tok, record.request.text, true)]
        out["P_other"] = [ask(model, tok, text, true) for text in record.paraphrases]
    out["N_other"] = [ask(model, tok, q.prompt, new) for q in record.neighborhood]
    for kind in ("locality", "portability"):
        for name, questions in getattr(record, kind).items():
            out[f"{kind}.{name}"] = [ask(model, tok, q.prompt, q.target) for q in questions]
    return out


def share(found, wanted):
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def values(now, before=None):
    out = {"rewrite_prob": now["E"][0][1]}
    for letter, name in (("E", "rewrite"), ("P", "rephrase"), ("N", "neighborhood")):
        if now[letter]:
            out[f"{name}_acc"] = statistics.mean(share(a[2], a[3]) for a in now[letter])
            out[f"{name}_exact"] = statistics.mean(float(a[2] == a[3]) for a in now[letter])
        pairs = list(zip(now[letter], now.get(f"{letter}_other", []), strict=False))
        pairs = [(a, b) for a, b in pairs if a[3] != b[3]]
        if pairs:
            out[f"{letter}S"] = statistics.mean(float(a[0] < b[0]) for a, b in pairs)
            out[f"{letter}M"] = statistics.mean(math.exp(-a[0]) - math.exp(-b[0]) for a, b in pairs)
    for name in now:
        if name.startswith("portability"):
            out[name] = statistics.mean(share(a[2], a[3]) for a in now[name])
        if name.startswith("locality") and before:
            pairs = zip(now[name], before[name], strict=True)
            out[name] = statistics.mean(share(a[2], b[2]) for a, b in pairs)
    if before and now["N"]:
        pairs = zip(now["N"], before["N"], strict=True)
        out["neighborhood_unchanged"] = statistics.mean(share(a[2], b[2]) for a, b in pairs)
    return out


def single(model, tok, records, **settings):
    """[{"before": values, "after": values}], one per record."""
    out = []
    for record in records:
        before = answers(model, tok, record)
        try:
            result = rome_fast.edit(model, tok, record.request, **settings)
        except RomeFastError:
            out.append({"before": values(before), "after": values(before, before)})
            continue
        after = answers(model, tok, record)
        result.revert()
        out.append({"before": values(before), "after": values(after, before)})
    return out


def sequential(model, tok, records, **settings):
    """[{"before", "edit_time", "after"}], one per record; and shares retained after each edit."""
    before = [answers(model, tok, record) for record in records]
    out = [{"before": values(b)} for b in before]
    results, retained = [], []
    for i, record in enumerate(records):
        results.append(rome_fast.edit(model, tok, record.request, **settings))
        out[i]["edit_time"] = values(answers(model, tok, record), before[i])
        asked = [ask(model, tok, r.request.text, r.request.target) for r in records[: i + 1]]
        retained.append(statistics.mean(float(a[2] == a[3]) for a in asked))
    for i, record in enumerate(records):
        out[i]["after"] = values(answers(model, tok, record), before[i])
    for result in reversed(results):
        result.revert()
    return out, retained


def means(cases, stage):
    """Metric -> mean over the cases that have it, and S."""
    names = {name for case in cases for name in case[stage]}
    out = {
        name: statistics.mean(case[stage][name] for case in cases if name in case[stage])
        for name in names
    }
    if {"ES", "PS", "NS"} <= names:
        three = [out["ES"], out["PS"], out["NS"]]
        out["S"] = statistics.harmonic_mean(three) if min(three) > 0 else 0.0
    return out
