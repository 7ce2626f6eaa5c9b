"""Train the demo model from nothing on augmented easy-VQA training images, and export it.

One command, resumable and deterministic from its seed: every step draws its data from the seed and the step
number alone, and a checkpoint carries weights, their running average, optimizer and random state. The
exported weights are the running average.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from benchmarks.demo_model.augment import Sprite, cut, vary
from benchmarks.demo_model.export import export_model, write_json
from benchmarks.demo_model.packing import Packed, pack
from benchmarks.demo_model.templates import ask, infer_labels, negated, templates
from benchmarks.demo_model.tiny_model import build_model, build_processor
from opskip_compile.demo.easy_vqa import Question, accuracy, batches, load_questions
from opskip_compile.models.images import load_image
from opskip_compile.models.packaged.model import MODEL_DIR, DemoProcessor, predict

LOG_FILE = Path(__file__).parent / "training_log.json"
HELD_OUT_IMAGES = 300


@dataclass(frozen=True, slots=True)
class Data:
    """What training draws from, and the questions about training images that it never sees."""

    sprites: list[Sprite]
    forms: list[str]
    held_out: list[Question]
    processor: DemoProcessor


def prepare(seed: int) -> Data:
    """Cut the sprites of the training split, keeping `HELD_OUT_IMAGES` of its images apart."""
    questions = load_questions("train")
    labels = infer_labels(questions)
    paths = {q.image_id: q.image_path for q in questions}
    apart = set(random.Random(seed).sample(sorted(paths), HELD_OUT_IMAGES))
    sprites = [
        cut(np.asarray(load_image(paths[i])), label)
        for i, label in tqdm(labels.items(), desc="sprites", mininterval=5)
        if i not in apart
    ]
    words = sorted({text for q in questions for text in (q.text, q.answer)})
    held_out = [q for q in questions if q.image_id in apart]
    return Data(sprites, templates(questions), held_out, build_processor(words))


def draw(data: Data, args: argparse.Namespace, step: int) -> Packed:
    """The packed batch of one step, a function of the seed and the step alone."""
    rng = random.Random(f"{args.seed}-{step}")
    images = [vary(rng.choice(data.sprites), rng) for _ in range(args.batch)]
    forms = data.forms if step >= args.affirmative else [form for form in data.forms if not negated(form)]
    asked = [[ask(forms, label, rng) for _ in range(args.questions)] for _, label in images]
    return pack(np.stack([picture for picture, _ in images]), asked, data.processor, args.rows)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine down to two per cent of the peak."""
    warm = min(1.0, (step + 1) / args.warmup)
    progress = min(1.0, step / args.steps)
    return float(args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))))


def forward_loss(model: Any, batch: Packed, device: torch.device) -> Tensor:
    """Cross-entropy at the answer rows, under bfloat16 autocast."""
    inputs = {name: value.to(device) for name, value in batch.inputs.items()}
    inputs["attention_mask"] = torch.where(inputs["attention_mask"], 0.0, -1e30)
    element, row = batch.answer_rows.to(device).unbind(1)
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[element, row])
    return cross_entropy(logits.float(), batch.answer_ids.to(device))


@torch.no_grad()
def evaluate(model: nn.Module, questions: Sequence[Question], processor: DemoProcessor, size: int = 50) -> float:
    """Accuracy with one plain prompt per question, in float32."""
    device = next(model.parameters()).device
    found: list[str] = []
    for _, inputs in batches(questions, processor, size):
        inputs = {name: value.to(device) for name, value in inputs.items()}
        found += predict(model(**inputs, use_cache=False, logits_to_keep=1).logits, processor)
    return accuracy(found, questions)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` beside `path` and move it into place, so that a killed run leaves a whole file."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    data = prepare(args.seed)
    model = build_model(data.processor).to(device).train()
    average = build_model(data.processor).to(device).eval()
    average.load_state_dict(model.state_dict())
    # Eager attention is 1.8 times as fast here: the CPU's fused backward is slow for a hundred-odd rows.
    model.set_attn_implementation({"": "eager", "text_config": "eager", "vision_config": "sdpa"})
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    log: list[dict[str, float]] = []
    first, spent = 0, 0.0
    checkpoint = args.work / "checkpoint.pt"
    args.work.mkdir(parents=True, exist_ok=True)
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        first, spent, log = state["step"], state["seconds"], state["log"]
    if args.compile:
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=False)
    saved = started = time.monotonic()
    running: list[Tensor] = []
    weights, means = list(model.parameters()), list(average.parameters())

    def snapshot(step: int) -> None:
        seconds = spent + time.monotonic() - started
        state = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        save_checkpoint(
            checkpoint, {**state, "rng": torch.get_rng_state(), "step": step, "seconds": seconds, "log": log}
        )

    progress = tqdm(range(first, args.steps), initial=first, total=args.steps, desc="train", mininterval=5)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        loss = forward_loss(model, draw(data, args, step), device)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(means, weights, 1 - min(args.average, (step + 1) / (step + 20)))
        running.append(loss.detach())
        done = step + 1
        if done % 50 == 0:
            progress.set_postfix(loss=f"{torch.stack(running[-50:]).mean():.4f}")
        if done % args.evaluate == 0 or done == args.steps:
            questions = data.held_out if done == args.steps else data.held_out[: args.evaluate_questions]
            score = evaluate(average, questions, data.processor)
            seconds = spent + time.monotonic() - started
            mean_loss = float(torch.stack(running).mean())
            log.append({"step": done, "loss": mean_loss, "held_out_accuracy": score, "seconds": round(seconds)})
            running.clear()
            tqdm.write(f"{log[-1]}")
            settings = {k: v for k, v in vars(args).items() if k not in ("work", "resume", "output")}
            write_json(LOG_FILE, {"settings": settings, "held_out_images": HELD_OUT_IMAGES, "log": log})
            if score >= args.export_from or done == args.steps:
                export_model(average, data.processor, args.output)
        if time.monotonic() - saved > args.checkpoint_seconds or done == args.steps:
            snapshot(done)
            saved = time.monotonic()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--questions", type=int, default=10, help="questions drawn per image")
    parser.add_argument("--rows", type=int, default=128, help="rows of a packed sequence")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--affirmative", type=int, default=1500, help="first steps without negated questions")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--average", type=float, default=0.999, help="decay of the weights' running average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--evaluate", type=int, default=500, help="steps between two evaluations")
    parser.add_argument("--evaluate-questions", type=int, default=1000)
    parser.add_argument("--export-from", type=float, default=0.9, help="held-out accuracy that exports a preview")
    parser.add_argument("--checkpoint-seconds", type=float, default=120)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--work", type=Path, default=Path("demo_model_run"), help="folder of the checkpoint")
    parser.add_argument("--output", type=Path, default=MODEL_DIR)
    args = parser.parse_args(arguments)
    for name in ("steps", "batch", "questions", "rows", "warmup", "evaluate", "evaluate_questions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    return args


if __name__ == "__main__":
    train(parse())
