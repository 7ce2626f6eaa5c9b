"""Accuracy of an exported model on every task: dense, and with all visual operators of the decoder skipped.

python -m benchmarks.vqa.accuracy --model FOLDER [--held-out 300] [--test 500] [--remove 8 9 --remove 7]
    [--schedule silent:6-9] --out FILE

Each question is a prompt of its own, and its answer is what greedy decoding gives. Skipping is done by the oracle, so
the figures say what it does to the answers and nothing about speed. With --remove one more run does without
whole layers, for text rows as well: what the layers are needed for, where skipping their visual rows changes little.
With --schedule one more run skips what a schedule names.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.vqa import architectures, learning, mixing
from benchmarks.vqa.architectures import Kit
from benchmarks.vqa.packing import Packed, Sample
from benchmarks.vqa.tasks import TASKS
from opskip_compile.models.oracle import oracle
from opskip_compile.output.files import write_whole
from opskip_compile.schedule.schedule import Schedule

PLANS = {"dense": Schedule(), "all skipped": Schedule.from_spec("late:1.0")}


def load(folder: Path) -> tuple[Any, Kit]:
    """An exported model in float32, and the architecture that it belongs to."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kit = architectures.load(config["model_type"])
    model = getattr(transformers, kit.family.model).from_pretrained(folder, dtype=torch.float32).eval()
    return model, kit


def test_samples(task: str, kit: Kit, count: int) -> list[Sample]:
    """The first `count` questions of the test split."""
    found = []
    for index in range(count):
        example = TASKS[task].example("test", index)
        asked = mixing.encode([(example.question, example.answer)], task, kit)
        found.append(Sample(example.images, asked, task=task))
    return found


def measure(model: Any, kit: Kit, samples: Sequence[Sample], plan: Schedule) -> dict[str, float]:
    """Exact matches by task under the definition of `plan`, and their mean."""
    image = kit.ids(kit.family.image)[0]

    def forward(packed: Packed) -> Tensor:
        with oracle(model, plan, packed.inputs["input_ids"] == image):
            return learning.answer_logits(model, packed)

    found = learning.accuracies(forward, samples, kit)
    tasks = [value for name, value in found.items() if name in TASKS]
    return {**{name: round(value, 4) for name, value in found.items()}, "mean": round(sum(tasks) / len(tasks), 4)}


@contextmanager
def removed(model: Any, layers: Sequence[int]) -> Iterator[None]:
    """The model without some decoder layers. Raises `IndexError` for a layer that it doesn't have."""
    decoder = model.get_decoder()
    whole = decoder.layers
    gone = {id(whole[layer]) for layer in layers}
    decoder.layers = nn.ModuleList([layer for layer in whole if id(layer) not in gone])
    try:
        yield
    finally:
        decoder.layers = whole


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=300, help="held-out training questions per task")
    parser.add_argument("--test", type=int, default=0, help="test questions per task")
    parser.add_argument(
        "--remove", type=int, nargs="+", action="append", default=[], help="layers that a further run is without"
    )
    parser.add_argument("--schedule", action="append", default=[], help="a schedule for one more run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("accuracy.json"))
    given = parser.parse_args(arguments)
    try:
        plans = PLANS | {spec: Schedule.from_spec(spec) for spec in given.schedule}
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(given.threads)
    model, kit = load(given.model)
    sets: dict[str, list[Sample]] = {}
    if given.held_out:
        sets["held out"] = [s for check in mixing.CHECKS for s in mixing.held_out(check, kit, given.held_out)]
    if given.test:
        sets["test"] = [s for task in TASKS for s in test_samples(task, kit, given.test)]
    result: dict[str, Any] = {"questions_per_task": {"held out": given.held_out, "test": given.test}, "runs": {}}
    runs = [(name, plan, ()) for name, plan in plans.items()]
    runs += [(f"without layers {', '.join(map(str, gone))}", Schedule(), gone) for gone in given.remove]
    for name, plan, gone in runs:
        for split, samples in sets.items():
            started = time.monotonic()
            with removed(model, gone):
                figures = measure(model, kit, samples, plan)
            result["runs"][f"{split}, {name}"] = {**figures, "seconds": round(time.monotonic() - started)}
            print(split, name, figures, flush=True)
            write_whole(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
