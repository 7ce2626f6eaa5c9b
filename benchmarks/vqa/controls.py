"""A trained model under calibrated schedules and under what should lose to them: the size of updates, and ten draws.

python -m benchmarks.vqa.controls --model qwen3_vl [--limit 60] [--cut 0.337 --cut 0.5]

The schedules of the published table (`vqa_MODEL.json`), the one that goes by `update_norm` alone, and random operators.
Answers are computed without Inductor. Writes `benchmarks/results/answers/vqa_controls_MODEL.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import opskip_compile as opskip
from benchmarks.vqa.architectures import CONFIGS
from benchmarks.vqa.evaluate import MODELS, RESULTS, calibration_prompts, files, load_trained
from benchmarks.vqa.exporting import LONGEST_ANSWER
from opskip_compile.output.environment import environment
from opskip_compile.output.progress import Step, progress
from opskip_compile.schedule.validation import write_json

PUBLISHED = ("operators", "layers", "late")


def controls(given: argparse.Namespace, cut: float, step: Step) -> list[dict[str, Any]]:
    """One line for each way to choose, at one cut."""
    model, encoder = load_trained(given.model, given.models)
    table = json.loads((given.results / f"vqa_{given.model}.json").read_text(encoding="utf-8"))["outcomes"]
    specs = {
        row["method"]: row["runs"][0]["spec"] for row in table if row["asked"] == cut and row["method"] in PUBLISHED
    }
    samples = calibration_prompts(model, encoder, given.work, given.calibration, given.batch, step)
    plain: Any = {"holdout": 0.0, "controls": False, "stability": False, "whole_front": False}
    chosen = opskip.calibrate(model, samples, cut, method="update_norm", search="scores", shares=(), step=step, **plain)
    specs["update_norm"] = chosen.schedule.to_spec()
    found = opskip.evaluate(
        model,
        files(given.work, "test", given.limit, step),
        processor=encoder,
        schedules=specs,
        methods=("random",),
        cuts=(cut,),
        random_seeds=given.random_seeds,
        batch=given.batch,
        answer_tokens=LONGEST_ANSWER,
        lower="eager",
        rounds=0,
        step=step,
    )
    return [{"asked_of_all": cut, **outcome.to_dict()} for outcome in found.outcomes]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, evaluate, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(path.stem for path in CONFIGS.glob("*.json")), required=True)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder with a folder for each trained model")
    parser.add_argument("--limit", type=int, default=60, help="test questions of each task")
    parser.add_argument("--calibration", type=int, default=16, help="calibration prompts of each task")
    parser.add_argument("--cut", type=float, action="append", help="default: 0.337 and 0.5")
    parser.add_argument("--random-seeds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--work", type=Path, default=Path("vqa_evaluation"), help="folder for the data")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the table, and to write to")
    given = parser.parse_args(arguments)
    with progress(Console(stderr=True)) as step:
        rows = [row for cut in given.cut or (0.337, 0.5) for row in controls(given, cut, step)]
    for row in rows:
        print(row["asked_of_all"], row["method"], row["flops_cut"], row["accuracy"], row["retained"])
    content = {"environment": environment("cpu", "float32"), "questions_per_task": given.limit, "outcomes": rows}
    write_json(content, given.results / f"vqa_controls_{given.model}.json")


if __name__ == "__main__":
    main()
