"""Train one model on the ten tasks, on a CPU or a GPU, and export it.

python -m benchmarks.vqa.train --config qwen3_vl --work RUN [--steps 4000]

A number in the file `RUN/steps` replaces --steps while the run goes on, so its end can be moved to where it fits.
Resumes by itself from `RUN/checkpoint.pt`. `--start FOLDER` begins with the weights of an exported model, also with
fewer layers or of another architecture (`starting.py`). A step draws its data from the seed, its own number and the
task weights, so a resumed run computes what an uninterrupted one does.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from benchmarks.vqa import architectures, learning, mixing
from benchmarks.vqa.architectures import Kit
from benchmarks.vqa.exporting import export_model
from benchmarks.vqa.learning import Heads
from benchmarks.vqa.muon import Muon
from benchmarks.vqa.starting import load_weights
from opskip_compile.output.files import write_whole

SHARES = dict.fromkeys((*mixing.TASKS, mixing.PAIRS), 1.0)
SHARES |= {"words": 1.3, "relations": 1.3, "counting": 1.2, "forms": 1.2, mixing.PAIRS: 1.6, "easy_vqa": 0.6}


class Run:
    """Everything that a training run carries from one step to the next."""

    def __init__(self, kit: Kit, given: argparse.Namespace) -> None:
        torch.manual_seed(given.seed)
        self.kit, self.given = kit, given
        self.device = torch.device(given.device)
        self.model = kit.model().train().to(self.device)
        self.heads = Heads(self.model.get_decoder().config.hidden_size, kit.settings["taps"]).to(self.device)
        if given.start:
            load_weights(self.model, self.heads, kit, given.start)
        self.average = copy.deepcopy(self.model).eval()
        # Eager attention is faster here: the CPU's fused backward is slow for a few hundred rows.
        self.model.set_attn_implementation({"": "eager", "text_config": "eager", "vision_config": "sdpa"})
        self.dtype = torch.bfloat16 if given.bfloat16 else torch.float32
        self.weights = list(self.model.parameters())
        inner, matrices, vectors = self._groups()
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(inner, lr=given.lr, weight_decay=given.weight_decay, dtype=self.dtype),
            torch.optim.AdamW(
                [{"params": matrices, "weight_decay": given.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
                betas=(0.9, 0.98),
            ),
        ]
        self.step, self.seconds = 0, 0.0
        self.errors = dict.fromkeys(SHARES, 1.0)  # running error of each task's own questions
        self.recent = {"answers": 0.0, "cells": 0.0, "points": 0.0}
        self.log: list[dict[str, Any]] = []
        checkpoint = given.work / "checkpoint.pt"
        if checkpoint.exists():
            self._load(torch.load(checkpoint, map_location=self.device, weights_only=True))
        if given.compile:
            for number, layer in enumerate(self.model.get_decoder().layers):
                if number != kit.settings["pointing_layer"]:  # its weights are read
                    layer.forward = torch.compile(layer.forward, dynamic=False)

    def _groups(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Matrices inside of blocks, other matrices (embeddings, output, heads), vectors."""
        inner, matrices, vectors = [], list(self.heads.maps.parameters()), list(self.heads.norms.parameters())
        for name, parameter in self.model.named_parameters():
            outer = any(part in name for part in ("embed", "lm_head", "position"))
            (vectors if parameter.ndim < 2 else matrices if outer or parameter.ndim > 2 else inner).append(parameter)
        return inner, matrices, vectors

    def task_weights(self) -> dict[str, float]:
        """The harder a task is at the moment, the more of it; none vanishes."""
        shares = SHARES | dict(self.given.share)
        return {task: share * (0.1 + self.errors[task]) for task, share in shares.items()}

    def rate(self) -> float:
        """The learning rate as a share of its peak: warm-up, a plateau, a straight way down at the end."""
        given, left = self.given, self.given.steps - self.step
        return min(1.0, (self.step + 1) / given.warmup, max(0.02, left / given.cooldown))

    def advance(self) -> None:
        """One training step."""
        given = self.given
        settings = {name: vars(given)[name] for name in ("batch", "rows", "pair_rows", "affirmative")}
        packed = mixing.batch(self.kit, given.seed, self.step, self.task_weights(), settings).to(self.device)
        losses, right = learning.losses(self.model, self.heads, packed, self.kit, self.dtype)
        total = losses["answers"] + given.cells * losses["cells"] + given.points * losses["points"]
        total.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_([*self.weights, *self.heads.parameters()], 1.0)
        for optimizer, peak in zip(self.optimizers, (given.lr, given.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * self.rate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        with torch.no_grad():
            keep = min(given.average, self.step / (self.step + 20))
            torch._foreach_lerp_(list(self.average.parameters()), self.weights, 1 - keep)
        for task, each in zip(packed.tasks, learning.first_right(packed, right), strict=True):
            self.errors[task] += 0.02 * ((not each) - self.errors[task])
        for name, value in losses.items():
            self.recent[name] += max(0.02, 1 / self.step) * (value.item() - self.recent[name])

    @torch.no_grad()
    def evaluate(self, count: int) -> dict[str, float]:
        """Accuracy of the averaged weights on `count` held-out questions of each check."""
        samples = [sample for check in mixing.CHECKS for sample in mixing.held_out(check, self.kit, count)]
        found = learning.accuracies(lambda packed: learning.answer_logits(self.average, packed), samples, self.kit)
        return {name: round(value, 4) for name, value in found.items()}

    def _state(self) -> dict[str, Any]:
        modules = {"model": self.model, "average": self.average, "heads": self.heads}
        return {
            **{name: module.state_dict() for name, module in modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            **{name: getattr(self, name) for name in ("step", "seconds", "errors", "recent", "log")},
        }

    def _load(self, state: dict[str, Any]) -> None:
        for name in ("model", "average", "heads"):
            module: nn.Module = getattr(self, name)
            module.load_state_dict(state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name in ("step", "seconds", "errors", "recent", "log"):
            setattr(self, name, state[name])
        self.recent.setdefault("points", 0.0)

    def save(self) -> None:
        """Write the checkpoint and the log, each as a whole file."""
        path = self.given.work / "checkpoint.pt"
        torch.save(self._state(), path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        settings = {name: value for name, value in vars(self.given).items() if not isinstance(value, Path)}
        content = {"settings": settings, "log": self.log}
        write_whole(self.given.work / "log.json", json.dumps(content, indent=1) + "\n")


def train(kit: Kit, given: argparse.Namespace) -> Run:
    """Train to the last step, with checkpoints and evaluations on the way."""
    given.work.mkdir(parents=True, exist_ok=True)
    run = Run(kit, given)
    before = run.seconds
    started = saved = evaluated = time.monotonic()
    planned = given.work / "steps"
    while run.step < given.steps:
        if run.step % given.show == 0 and planned.exists():
            given.steps = int(planned.read_text(encoding="utf-8"))
        run.advance()
        now, last = time.monotonic(), run.step == given.steps
        run.seconds = before + now - started
        if run.step % given.show == 0:
            errors = " ".join(f"{name[:5]}{'2' * (name == mixing.PAIRS)} {run.errors[name]:.2f}" for name in SHARES)
            recent = " ".join(f"{name} {value:.3f}" for name, value in run.recent.items())
            print(f"{run.step} {run.seconds:.0f}s {recent} | {errors}", flush=True)
        if last or now - evaluated > given.evaluate_seconds:
            entry = {"step": run.step, "seconds": round(run.seconds), **run.recent, "errors": dict(run.errors)}
            run.log.append({**entry, "accuracy": run.evaluate(given.evaluate_questions)})
            print(f"{run.step} {run.log[-1]['accuracy']}", flush=True)
            evaluated = time.monotonic()
        if last or now - saved > given.checkpoint_seconds:
            run.save()
            saved = time.monotonic()
    if given.out:
        export_model(run.average, run.heads, kit, given.out)
    return run


def _share(text: str) -> tuple[str, float]:
    """``task=number``, such as ``comparison of two=5``."""
    task, _, number = text.rpartition("=")
    if task not in SHARES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(SHARES)}, then = and a number; got {text!r}")
    try:
        found = float(number)
    except ValueError:
        found = -1.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0 after {task}=, got {number!r}")
    return task, found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="qwen3_vl", help="a file of configs/, without .json")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--rows", type=int, default=232, help="rows of a sequence with one image")
    parser.add_argument("--pair-rows", type=int, default=352, help="rows of a sequence with two images")
    parser.add_argument("--lr", type=float, default=5e-3, help="peak learning rate of the inner matrices")
    parser.add_argument("--adam-lr", type=float, default=2e-3, help="that of everything else")
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--cooldown", type=int, default=600, help="last steps, in which the rate falls")
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--cells", type=float, default=0.2, help="weight of the cell labels")
    parser.add_argument("--points", type=float, default=0.5, help="weight of where to look")
    parser.add_argument("--affirmative", type=int, default=1500, help="first steps without negated questions")
    parser.add_argument(
        "--share", type=_share, action="append", default=[], metavar="TASK=NUMBER", help="draw a task more often"
    )
    parser.add_argument("--average", type=float, default=0.995, help="decay of the running average of the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=int, default=25, help="steps between two lines")
    parser.add_argument("--evaluate-seconds", type=float, default=600)
    parser.add_argument("--evaluate-questions", type=int, default=60, help="held-out questions of each task")
    parser.add_argument("--checkpoint-seconds", type=float, default=180)
    parser.add_argument("--bfloat16", action="store_true", help="the decoder's products: faster where a CPU has AMX")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--work", type=Path, default=Path("vqa_run"), help="folder of the checkpoint and the log")
    parser.add_argument("--start", type=Path, help="folder of an exported model to begin with")
    parser.add_argument("--out", type=Path, help="folder to export to after the last step")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse()
    torch.set_num_threads(options.threads)
    train(architectures.load(options.config), options)
