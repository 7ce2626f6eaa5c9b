"""What calibrated schedules do to the demo model's test answers, against other ways to choose at equal FLOPs.

Schedules are chosen on training questions of easy-VQA alone; accuracy is that on questions of the test split, run
eagerly under the oracle's definition. Writes benchmarks/results/calibration/calibration_cpu.json.

python -m benchmarks.calibration [--questions 2000] [--samples 64] [--cut 0.337 --cut 0.5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import opskip_compile as opskip
from opskip_compile.calibration.journal import Journal
from opskip_compile.calibration.operator_sets import Skipped
from opskip_compile.calibration.replay import Replay
from opskip_compile.calibration.samples import Samples
from opskip_compile.demo import easy_vqa
from opskip_compile.demo.run import spread
from opskip_compile.demo.samples import DemoSamples
from opskip_compile.models.devices import check_place
from opskip_compile.models.packaged import model as packaged
from opskip_compile.output.environment import environment
from opskip_compile.output.progress import Step, progress
from opskip_compile.schedule.validation import write_json

RESULTS = Path(__file__).parent / "results" / "calibration" / "calibration_cpu.json"
BATCH = 50
# name: options of `calibrate`
WAYS: Mapping[str, Mapping[str, Any]] = {
    "calibrated": {},
    "calibrated, first opinion by fisher": {"method": "fisher"},
    "calibrated, whole layers": {"level": "layer"},
    "scores alone: probe": {"search": "scores"},
    "scores alone: fisher": {"search": "scores", "method": "fisher"},
    "scores alone: first_order": {"search": "scores", "method": "first_order"},
    "scores alone: update_norm": {"search": "scores", "method": "update_norm"},
}


class TestQuestions(Samples):
    """Test questions with their right answers, one token each."""

    def __init__(self, model: nn.Module, processor: packaged.DemoProcessor, count: int) -> None:
        super().__init__(model, "visual", 1)
        self.questions, self.processor = spread(easy_vqa.load_questions("test"), count, 0), processor

    def size(self) -> int:
        return -(-len(self.questions) // BATCH)

    def prompt(self, i: int) -> tuple[dict[str, Any], list[list[int] | None], tuple[str, ...]]:
        asked = self.questions[i * BATCH : (i + 1) * BATCH]
        answers: list[list[int] | None] = [[self.processor.token_id(question.answer)] for question in asked]
        return dict(easy_vqa.collate(asked, self.processor)), answers, tuple(question.text for question in asked)


def accuracies(model: nn.Module, questions: TestQuestions, sets: Iterable[Skipped], step: Step) -> dict[Skipped, float]:
    """Share of right answers with each set skipped; the empty set is the dense model."""
    right = dict.fromkeys((frozenset(), *sets), 0)
    questions.check(step)
    questions.answer(Journal(None, {}), step)
    with torch.no_grad():
        for i in range(questions.size()):
            step("answering test questions", i, questions.size())
            replay = Replay(model, questions.batch(i))
            for skipped in right:
                said = replay.outcome(skipped).logits.argmax(-1)
                right[skipped] += int((said == replay.batch.predicted).sum())
    return {skipped: count / questions.count for skipped, count in right.items()}


def by_cut(model: nn.Module, samples: Callable[[], Samples], cuts: Sequence[float], step: Step) -> list[dict[str, Any]]:
    """Every way to choose at every cut, and its controls."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for cut in cuts:
            for name, how in WAYS.items():
                first = name == "calibrated"
                found = opskip.calibrate(
                    model,
                    samples(),
                    cut,
                    shares=(),
                    controls=first,
                    stability=first,
                    whole_front=False,
                    resume=Path(folder) / "journal",
                    step=step,
                    **how,
                )
                rows.append({"asked": cut, "name": name, "choices": [found.chosen]})
                if first:
                    rows[-1]["stability"] = found.stability
                    late = found.controls["late"][-1:]
                    rows.append({"asked": cut, "name": "random, 10 seeds", "choices": list(found.controls["random"])})
                    rows.append({"asked": cut, "name": "the last layers", "choices": list(late)})
    return rows


def by_samples(model: nn.Module, make: Any, sizes: Sequence[int], cut: float, step: Step) -> list[dict[str, Any]]:
    """The calibrated schedule of different numbers of samples."""
    rows = []
    for size in sizes:
        found = opskip.calibrate(model, make(size), cut, shares=(), controls=False, whole_front=False, step=step)
        rows.append({"samples": size, "choices": [found.chosen], "stability": found.stability, "spent": found.spent})
    return rows


def figures(row: Mapping[str, Any], right: Mapping[Skipped, float]) -> dict[str, Any]:
    """Plain data of one row: means over its choices."""
    choices, dense = row["choices"], right[frozenset()]
    found = [right[choice.skipped] for choice in choices]
    held = [choice.heldout.divergence for choice in choices]
    out = {key: row[key] for key in ("asked", "name", "samples") if key in row}
    out |= {
        "schedule": choices[0].schedule.to_spec() if len(choices) == 1 else "",
        "flops_cut": round(statistics.fmean(choice.cut for choice in choices), 4),
        "accuracy": round(statistics.fmean(found), 5),
        "retained": round(statistics.fmean(found) / dense, 5),
        "lowest": round(min(found), 5),
        "highest": round(max(found), 5),
        "heldout_divergence": float(f"{statistics.fmean(held):.3g}"),
    }
    if row.get("stability") is not None:
        out["halves_overlap"] = round(row["stability"].overlap, 3)
    if "spent" in row:
        out["dense_prefills"] = round(row["spent"].dense_prefills, 1)
        out["seconds"] = round(row["spent"].seconds, 1)
    return out


def show(rows: Sequence[Mapping[str, Any]], title: str, first: Sequence[str]) -> Table:
    """A table of `figures`."""
    columns = [*first, "flops_cut", "accuracy", "retained", "lowest", "heldout_divergence", "schedule"]
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    return table


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--cut", type=float, action="append")
    parser.add_argument("--size", type=int, action="append", help="samples of the second table")
    parser.add_argument("--size-cut", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    place, model, processor = check_place("cpu", "float32"), packaged.load_model(), packaged.load_processor()

    def samples(count: int) -> DemoSamples:
        return DemoSamples(model, processor, count)

    console = Console(width=200)
    with progress(Console(stderr=True)) as step:
        ways = by_cut(model, lambda: samples(given.samples), given.cut or [0.337, 0.5, 0.65], step)
        sizes = by_samples(model, samples, given.size or [16, 64, 256], given.size_cut, step)
        sets = dict.fromkeys(choice.skipped for row in (*ways, *sizes) for choice in row["choices"])
        right = accuracies(model, TestQuestions(model, processor, given.questions), sets, step)
    report = {
        **environment(place, "float32"),
        "model": "the demo model",
        "questions": given.questions,
        "samples": given.samples,
        "dense_accuracy": right[frozenset()],
        "by_cut": [figures(row, right) for row in ways],
        "by_samples": {"asked": given.size_cut, "results": [figures(row, right) for row in sizes]},
    }
    console.print(show(report["by_cut"], f"{given.samples} samples", ["asked", "name"]))
    console.print(show(report["by_samples"]["results"], f"cut {given.size_cut}", ["samples", "halves_overlap"]))
    write_json(report, given.out)


if __name__ == "__main__":
    main()
