"""The answer-silent study of a trained model of this suite: each layer's visual update against its effect on answers.

python -m benchmarks.vqa.silent --model qwen3_vl [--prompts 32]

`opskip_compile.diagnose` on the calibration split, the model's own answers. Writes
`benchmarks/results/answers/vqa_silent_MODEL.json` and `.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import opskip_compile as opskip
from benchmarks.vqa.architectures import CONFIGS
from benchmarks.vqa.evaluate import MODELS, RESULTS, calibration_prompts, load_trained
from opskip_compile.output.environment import environment
from opskip_compile.output.progress import progress
from opskip_compile.schedule.validation import write_json


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, print the table and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(path.stem for path in CONFIGS.glob("*.json")), required=True)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder with a folder for each trained model")
    parser.add_argument("--prompts", type=int, default=32, help="calibration prompts of each task")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--work", type=Path, default=Path("vqa_evaluation"), help="folder for the data")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    given = parser.parse_args(arguments)
    with progress(Console(stderr=True)) as step:
        model, encoder = load_trained(given.model, given.models)
        samples = calibration_prompts(model, encoder, given.work, given.prompts, given.batch, step)
        found = opskip.diagnose(model, samples, step=step)
    Console(width=100).print(found.table())
    target = given.results / f"vqa_silent_{given.model}"
    write_json({"environment": environment("cpu", "float32"), **found.to_dict()}, target.with_suffix(".json"))
    found.plot(target.with_suffix(".png"))


if __name__ == "__main__":
    main()
