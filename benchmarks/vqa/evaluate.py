"""What the answers of the suite's trained models keep, over the ten tasks: `opskip_compile.evaluate` on their folders.

python -m benchmarks.vqa.evaluate [--model qwen3_vl ...] [--models FOLDER] [--limit 1000] [--calibration 16]

Writes `benchmarks/results/answers/vqa_MODEL.json`, `.md` and `.png` for each; with `--study NAME` these are
`vqa_NAME_MODEL` files. Operators are chosen on the calibration split alone. Models that `recipe.py` exported to
`FOLDER/qwen3_vl` and the like are evaluated by `--models FOLDER`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from torch import Tensor, nn

import opskip_compile as opskip
from benchmarks.vqa.architectures import CONFIGS, Kit, load
from benchmarks.vqa.export import export
from benchmarks.vqa.exporting import LONGEST_ANSWER
from benchmarks.vqa.tasks import TASKS
from opskip_compile.calibration.files import FileSamples
from opskip_compile.evaluation.config import CUTS
from opskip_compile.evaluation.result import Evaluation
from opskip_compile.models.jsonl import read_lines
from opskip_compile.models.prompts import Encoder
from opskip_compile.output.environment import environment
from opskip_compile.output.files import write_whole
from opskip_compile.output.progress import Step, progress
from opskip_compile.schedule.validation import write_json

MODELS = Path(__file__).parent / "models"
RESULTS = Path(__file__).resolve().parents[1] / "results" / "answers"


class KitEncoder(Encoder):
    """Prompts as the recipe trains them: the image blocks, then the words of the question."""

    def __init__(self, kit: Kit) -> None:
        super().__init__(kit)
        self.kit = kit

    def prompts(self, images: Sequence[Sequence[Any]], texts: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of a batch, padded on the left; one or two images of 96 x 96 pixels to a prompt."""
        kit = self.kit
        rows = [kit.block() * len(own) + kit.question(text) for own, text in zip(images, texts, strict=True)]
        length = max(map(len, rows))
        ids = torch.tensor([[kit.tokenizer.pad_token_id] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        found = {
            "input_ids": ids,
            "attention_mask": mask,
            **kit.pixels(np.stack([np.asarray(image) for own in images for image in own])),
        }
        if kit.family.two_axes:
            found["mm_token_type_ids"] = (ids == kit.ids(kit.family.image)[0]).to(torch.int64)
        return found


def load_trained(name: str, models: Path = MODELS) -> tuple[Any, KitEncoder]:
    """A trained model in float32 and evaluation mode, and what turns prompts into its inputs."""
    kit = load(name)
    model = getattr(transformers, kit.family.model).from_pretrained(models / name, dtype=torch.float32)
    return model.eval(), KitEncoder(kit)


def tower_of(model: Any) -> nn.Module:
    """The vision tower of a model of the suite."""
    found: nn.Module = model.model.visual if hasattr(model.model, "visual") else model.model.vision_tower
    return found


@contextmanager
def remembering(tower: nn.Module) -> Iterator[None]:
    """Let a vision tower look up what it returned for the same pixels before.

    All runs ask about the same batches, and nothing of the tower is ever skipped. All it returns is kept until
    the block ends, 0.2 to 0.3 MB an image.
    """
    known: dict[bytes, Any] = {}
    forward = tower.forward

    def remembered(*args: Any, **named: Any) -> Any:
        key = hashlib.sha256()
        for name, value in (*enumerate(args), *sorted(named.items())):
            key.update(f"{name}={type(value).__name__ if isinstance(value, Tensor) else value}".encode())
            if isinstance(value, Tensor):
                key.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        if key.digest() not in known:
            known[key.digest()] = forward(*args, **named)
        return copy.copy(known[key.digest()])  # Qwen's model puts its own fields into what it gets

    tower.forward = remembered
    try:
        yield
    finally:
        del tower.forward


def files(folder: Path, split: Any, count: int, step: Step = lambda what, done, total: None) -> list[Path]:
    """A JSONL file for each task, with the first `count` examples of a split; what is there already is kept."""
    found = []
    for done, (name, task) in enumerate(TASKS.items()):
        step(f"drawing the {split} split", done, len(TASKS))
        own = folder / f"{split}-{count}" / name
        data = own / "data.jsonl"
        found.append(data if data.exists() else export(task, split, min(count, task.size(split)), own))
    return found


def calibration_prompts(
    model: Any, encoder: Encoder, folder: Path, count: int, batch: int, step: Step = lambda what, done, total: None
) -> FileSamples:
    """`count` prompts of each task's calibration split, with the model's own answers."""
    lines = [line for file in files(folder, "calibration", count, step) for line in read_lines(file)]
    return FileSamples(model, lines, encoder, "visual", LONGEST_ANSWER, batch)


def table(name: str, given: argparse.Namespace) -> Evaluation:
    """All methods at all cuts on one model; writes its files."""
    model, encoder = load_trained(name, given.models)
    with progress(Console(stderr=True)) as step, remembering(tower_of(model)):
        result = opskip.evaluate(
            model,
            files(given.work, "test", given.limit, step),
            processor=encoder,
            calibration=files(given.work, "calibration", given.calibration, step),
            methods=given.method,
            cuts=given.cut or CUTS,
            random_seeds=given.random_seeds,
            calibration_limit=None,
            search_samples=given.search,
            batch=given.batch,
            answer_tokens=LONGEST_ANSWER,
            lower="eager" if given.eager else "inductor",
            rounds=given.rounds,
            resume=given.work / name,
            step=step,
        )
    target = given.results / f"vqa_{f'{given.study}_' * bool(given.study)}{name}"
    write_json({"environment": environment("cpu", "float32"), **result.to_dict()}, target.with_suffix(".json"))
    write_whole(target.with_suffix(".md"), result.markdown() + "\n")
    result.plot(target.with_suffix(".png"))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, evaluate, print the tables and write the files."""
    known = sorted(path.stem for path in CONFIGS.glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=known, help="default: all that are trained")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder with a folder for each trained model")
    parser.add_argument("--limit", type=int, default=1000, help="test questions of each task")
    parser.add_argument("--calibration", type=int, default=16, help="calibration prompts of each task")
    parser.add_argument("--search", type=int, help="of them in all that searches look at; levels are fitted to all")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--cut", type=float, action="append", help="default: 0.2, 0.337, 0.5 and 0.65")
    parser.add_argument("--method", action="append", help="default: all")
    parser.add_argument("--random-seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7, help="of timing the prefill by Inductor; 0 for none")
    parser.add_argument("--eager", action="store_true", help="answer without Inductor, which is quicker here")
    parser.add_argument("--study", default="", help="what comes into the names of the files, before the model's")
    parser.add_argument("--work", type=Path, default=Path("vqa_evaluation"), help="folder for data and answers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    given = parser.parse_args(arguments)
    asked = given.model or [name for name in known if (given.models / name).is_dir()]
    if missing := [name for name in asked or known if not (given.models / name).is_dir()]:
        parser.error(f"{given.models} has no folder {' or '.join(missing)}")
    given.results.mkdir(parents=True, exist_ok=True)  # before the hour, not after it
    for name in asked:
        print(table(name, given).markdown())


if __name__ == "__main__":
    main()
