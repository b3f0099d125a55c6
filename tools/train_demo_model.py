"""Train the demo model that ships in ``rome_fast/demo``.

    python tools/train_demo_model.py

Writes the tokenizer, the facts and the weights. Training is seeded by step, and a checkpoint in
``--work`` lets a run that was stopped go on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from demo_corpus import batches, facts, network, prose
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

DEMO = Path(__file__).parent.parent / "rome_fast" / "demo"
END = "<|endoftext|>"
ROW_TOKENS, POSITIONS = 48, 128


def train_tokenizer(known: list[facts.Fact], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose merges make every object's words single tokens first."""
    rng = random.Random(facts.SEED)
    phrasings = facts.load_phrasings()
    lines = [prose.sentence(rng) for _ in range(3000)] + [f"{lead} it." for lead in prose.LEADS]
    for fact in known:
        forms = phrasings[fact.relation]
        for form in [*rng.sample(forms["train"], 5), forms["canonical"]]:
            lines.append(f"{form.format(fact.subject)} {fact.target}.")
        lines.append(f"Say {fact.target}, {fact.target}, {fact.target}, {fact.subject}.")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def new_model(args: argparse.Namespace, tok: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A freshly initialised model of the size asked for."""
    torch.manual_seed(args.seed)
    config = GPT2Config(
        vocab_size=len(tok),
        n_positions=POSITIONS,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.width // 32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    return GPT2LMHeadModel(config)


def new_optimizers(model: GPT2LMHeadModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, biases and norms."""
    inner = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    chosen = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(inner, lr=lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.97), weight_decay=0.0, fused=True),
    ]


def learning_rate(progress: float, peak: float) -> float:
    """Warm-up over the first hundredth of the time, then a cosine down to a fiftieth."""
    if progress < 0.01:
        return peak * (0.05 + progress / 0.01 * 0.95)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def write_checkpoint(
    path: Path, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer], at: dict[str, Any]
) -> None:
    """All that a stopped run needs to go on; ``at`` says how far it came."""
    states = [optimizer.state_dict() for optimizer in optimizers]
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizers": states, **at}, partial)
    partial.replace(path)  # a run stopped while writing keeps the checkpoint before


def read_checkpoint(
    path: Path, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Restore a run and return its step and the seconds spent; (0, 0.0) if there is none."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["spent"]


def train(
    model: GPT2LMHeadModel, maker: batches.BatchMaker, args: argparse.Namespace, path: Path
) -> None:
    """Train for ``--steps`` steps, or ``--minutes`` if that is shorter; checkpoint on the way.

    The learning rate follows whichever of the two is further on, so that either end is cooled.
    """
    rules = network.Rules(args.fact_layer, args.hide, args.late, args.noise_share, args.noise)
    optimizers = new_optimizers(model, args.lr)
    step, spent = read_checkpoint(path, model, optimizers)
    began, saved, log = time.monotonic() - spent, spent, [0.0, 0.0]
    model.train()
    while True:
        spent = time.monotonic() - began
        progress = max(step / args.steps, spent / (60 * args.minutes))
        if progress >= 1 or spent - saved > 120:
            write_checkpoint(path, model, optimizers, {"step": step, "spent": spent})
            saved = spent
        if progress >= 1:
            return
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, args.lr)
        sharpen = progress >= args.sharpen_from
        width = ROW_TOKENS if step % 8 else 2 * ROW_TOKENS
        batch = maker.batch(step, args.rows, width, sharpen)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, on_objects = network.training_loss(model, batch, rules, generator, sharpen)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step, log = step + 1, [0.98 * log[0] + loss.item(), 0.98 * log[1] + on_objects.item()]
        if step % 50 == 0:
            means = " ".join(f"{value * 0.02:.3f}" for value in log)
            print(f"step {step} {spent:.0f} s loss and on objects {means}", flush=True)


@torch.no_grad()
def recall(
    model: GPT2LMHeadModel, tok: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> float:
    """Share of (prompt, target) pairs whose target the model gives greedily."""
    right = 0
    for start in range(0, len(pairs), 256):
        part = pairs[start : start + 256]
        goals = [tok.encode(" " + target) for _, target in part]
        rows = [tok.encode(prompt) + goal for (prompt, _), goal in zip(part, goals, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [tok.eos_token_id] * (width - len(row)) for row in rows])
        best = model(ids).logits.argmax(-1).tolist()
        for row, goal, guess in zip(rows, goals, best, strict=True):
            right += guess[len(row) - len(goal) - 1 : len(row) - 1] == goal
    return right / len(pairs)


def save(model: GPT2LMHeadModel, tok: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights in half precision and the tokenizer, as ``from_pretrained`` reads them."""
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    tok.save_pretrained(folder)
    # transformers 5 writes a class name that transformers 4 does not know; both know this one.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """What can be set; the defaults are those of the model that ships."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo_work"), help="checkpoint folder")
    parser.add_argument("--out", type=Path, default=DEMO, help="where the model is written")
    parser.add_argument("--minutes", type=float, default=55.0)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fact-layer", type=int, default=2)
    parser.add_argument("--hide", type=float, default=0.6)
    parser.add_argument("--late", type=float, default=0.3)
    parser.add_argument("--swap", type=float, default=0.3)
    parser.add_argument("--sharpen-from", type=float, default=0.41, help="share of the run")
    parser.add_argument("--noise-share", type=float, default=0.5)
    parser.add_argument("--noise", type=float, default=0.3)
    return parser.parse_args()


def main() -> None:
    """Train, measure, write."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)

    known = facts.all_facts()
    records = facts.fact_records(known)
    lines = ",\n".join(json.dumps(record) for record in records)
    (args.out / "facts.json").write_text(f"[\n{lines}\n]\n")
    tok = train_tokenizer(known, args.vocab)
    model = new_model(args, tok)
    print(f"{len(known)} facts, {model.num_parameters():,} parameters", flush=True)
    checkpoint = args.work / "checkpoint.pt"
    train(model, batches.BatchMaker(tok, known, args.seed, args.swap), args, checkpoint)
    model.eval()
    save(model, tok, args.out / "model")
    asked = [(r["prompt"].format(r["subject"]), r["target"]) for r in records]
    other = [(text, r["target"]) for r in records for text in r["paraphrase_prompts"]]
    print(f"recall {recall(model, tok, asked):.4f} held out {recall(model, tok, other):.4f}")


if __name__ == "__main__":
    main()
