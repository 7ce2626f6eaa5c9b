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
from export import write_json
from search import SCHEDULE_FILE
from skipping import answer_logits, operators, skipped_by
from tqdm import tqdm

from opskip_compile.demo.data import (
    MODEL_DIR,
    Question,
    accuracy,
    agreement,
    load_model,
    load_processor,
    load_questions,
)
from opskip_compile.flops import count_flops
from opskip_compile.schedule import Schedule

RESULT_FILE = Path(__file__).parent / "evaluation.json"


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
    layers = len(model.model.language_model.layers)
    sets: dict[str, Any] = {"dense": []}
    for text in args.schedule:
        sets[text] = skipped_by(Schedule.of(text), layers)
    sets["all skipped"] = operators(model)
    result: dict[str, Any] = {"split": args.split, "questions": len(questions), "runs": {}}
    dense: list[str] = []
    for name, skipped in tqdm(sets.items(), desc=args.split):
        started = time.monotonic()
        logits = answer_logits(model, questions, processor, skipped, args.batch)
        found: list[str] = processor.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
        dense = dense or found
        schedule = ""
        if skipped:
            schedule = " ".join(f"{operator.name}:{operator.layer}" for operator in skipped)
        run = {
            "accuracy": round(accuracy(found, questions), 5),
            "of_dense": round(accuracy(found, questions) / accuracy(dense, questions), 5),
            "agreement_with_dense": round(agreement(found, dense), 5),
            "by_kind": by_kind(found, questions),
            "skipped": schedule,
            "seconds": round(time.monotonic() - started),
        }
        if name in args.schedule:
            flops = count_flops(model, visual_tokens=64, text_tokens=args.text_rows, schedule=Schedule.of(name))
            run["flops_cut"] = round(flops.cut, 4)
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
