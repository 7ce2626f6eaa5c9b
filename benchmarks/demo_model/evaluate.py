"""Accuracy of the demo model on the easy-VQA test split: dense, with its schedule, with everything skipped.

The schedule is applied eagerly by hooks, so these figures say what skipping does to the answers and nothing
about speed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.demo_model.export import write_json
from opskip_compile.demo.easy_vqa import Question, accuracy, agreement, batches, load_questions
from opskip_compile.models.oracle import oracle
from opskip_compile.models.packaged.model import MODEL_DIR, SCHEDULE_FILE, DemoProcessor, load_model, load_processor
from opskip_compile.schedule.flops import count_flops
from opskip_compile.schedule.schedule import Schedule

RESULT_FILE = Path(__file__).parent / "evaluation.json"


@torch.inference_mode()
def answer_logits(
    model: Any, questions: Sequence[Question], processor: DemoProcessor, schedule: Schedule, size: int
) -> Tensor:
    """Answer-row logits of each question, shape `(questions, vocabulary)`, under the definition of `schedule`."""
    rows = []
    for _, inputs in batches(questions, processor, size):
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        with oracle(model, schedule, inputs["mm_token_type_ids"].bool()):
            rows.append(model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float())
    return torch.cat(rows)


def by_kind(found: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
    """Accuracy per kind of question: yes or no, colour, shape."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, q in enumerate(questions):
        yes_no = q.answer in ("yes", "no")
        groups["yes/no" if yes_no else "color" if "color" in q.text else "shape"].append(index)
    return {
        kind: round(accuracy([found[i] for i in group], [questions[i] for i in group]), 4)
        for kind, group in sorted(groups.items())
    }


def main(args: argparse.Namespace) -> None:
    model, processor = load_model(args.model).to(args.device), load_processor(args.model)
    questions = load_questions(args.split)[: args.limit]
    plans = {"dense": Schedule(), **{text: Schedule.of(text) for text in args.schedule}}
    plans["all skipped"] = Schedule.from_spec("late:1.0")
    result: dict[str, Any] = {"split": args.split, "questions": len(questions), "runs": {}}
    dense: list[str] = []
    for name, plan in tqdm(plans.items(), desc=args.split):
        started = time.monotonic()
        logits = answer_logits(model, questions, processor, plan, args.batch)
        found: list[str] = processor.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
        dense = dense or found
        flops = count_flops(model, visual_tokens=64, text_tokens=args.text_rows, schedule=plan)
        run = {
            "accuracy": round(accuracy(found, questions), 5),
            "of_dense": round(accuracy(found, questions) / accuracy(dense, questions), 5),
            "agreement_with_dense": round(agreement(found, dense), 5),
            "by_kind": by_kind(found, questions),
            "schedule": plan.to_spec(),
            "flops_cut": round(flops.cut, 4),
            "seconds": round(time.monotonic() - started),
        }
        result["runs"][Path(name).name if name.endswith(".json") else name] = run
        tqdm.write(f"{name}: {json.dumps(run)}")
        if args.output:
            write_json(args.output, result)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("schedule", nargs="*", default=[str(SCHEDULE_FILE)], help="files or spec texts")
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--limit", type=int, default=None, help="only the first so many questions")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--text-rows", type=int, default=9, help="text rows of the prompt whose FLOPs are counted")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--output", type=Path, default=RESULT_FILE)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parse())
