"""Several questions about one image whose keys and values stay in the cache: dense, skipped and dropped.

python -m benchmarks.vqa.many_turns [--model qwen3_vl] [--images 25] [--cut 0.337 --cut 0.5] [--work FOLDER]

The image and the first question are prefilled, dense or with fewer FLOPs. For the second and the third question the
cache is cut back to the rows of the image, as a server's prefix cache would hold them, and only the new words run. What
was left out or dropped was left out for the first question: methods that choose by the words of a prompt chose for
that one. Schedules are those of `vqa_combined_MODEL.json`, which were calibrated on the ten tasks. Writes
`benchmarks/results/answers/vqa_turns_MODEL.json` and `.md`: what each of the three questions retains.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from transformers import DynamicCache

import opskip_compile as opskip
from benchmarks.vqa.architectures import CONFIGS
from benchmarks.vqa.asking import questions
from benchmarks.vqa.evaluate import RESULTS, KitEncoder, load_trained, remembering, tower_of
from benchmarks.vqa.exporting import LONGEST_ANSWER
from benchmarks.vqa.facts import observe
from opskip_compile._compat import cache_argument
from opskip_compile.evaluation.measures import TaskRows, accuracies, bootstrap, is_right, retained
from opskip_compile.evaluation.running import running
from opskip_compile.models.images import open_image
from opskip_compile.models.jsonl import Line
from opskip_compile.models.rows import visual_tokens
from opskip_compile.output.environment import environment
from opskip_compile.output.files import write_whole
from opskip_compile.output.progress import progress
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.schedule.validation import write_json

ASKED = ("digits", "words", "charts", "counting", "colors", "relations", "existence", "forms")
TURNS = 3
SKIPPED = ("operators", "operators+keep")
DROPPED = ("divprune", "random-tokens", "fastv", "vtw")
CUTS = (0.337, 0.5)
RESAMPLES = 2000


@dataclass(frozen=True)
class Talk:
    """One image and the questions about it, in the order of the turns, with their answers."""

    task: str
    image: Path
    asked: tuple[tuple[str, str], ...]

    def line(self, turn: int) -> Line:
        """One of the questions, as a line of a file."""
        question, answer = self.asked[turn]
        return Line(f"{self.image.stem}, question {turn + 1}", (self.image,), question, (answer,), self.task)


def talks(folder: Path, images: int) -> list[Talk]:
    """The first images of each task's test split that have enough questions, and these in random order."""
    found: list[Talk] = []
    folder.mkdir(parents=True, exist_ok=True)
    for task in ASKED:
        index, wanted = 0, len(found) + images
        while len(found) < wanted:
            rng = random.Random(f"turns-{task}-{index}")
            example, record = observe(task, "test", index)
            own = (example.question, example.answer)
            pairs = dict([*questions(task, record, rng, 8), own])
            if len(pairs) >= TURNS and len(example.images) == 1:
                others = rng.sample([pair for pair in pairs.items() if pair != own], TURNS - 1)
                asked = rng.sample([own, *others], TURNS)
                path, file = folder / f"{task}-{index:06d}.png", io.BytesIO()
                Image.fromarray(example.images[0]).save(file, "PNG")
                write_whole(path, file.getvalue())
                found.append(Talk(task, path, tuple(asked)))
            index += 1
    return found


def answers(model: Any, encoder: KitEncoder, talk: Talk) -> list[str]:
    """Greedy answers to all questions of a talk, on one cache."""
    prefix = len(encoder.kit.block())
    name = cache_argument(model.forward)
    cache = DynamicCache(config=model.get_decoder().config)
    never = list(visual_tokens(model))
    ends = {int(encoder.kit.tokenizer.eos_token_id)}

    def next_token(**inputs: Any) -> int:
        logits: Tensor = model(**inputs, **{name: cache}, logits_to_keep=1).logits[0, -1]
        logits[never] = -torch.inf
        return int(logits.argmax())

    said = []
    for turn, (question, _) in enumerate(talk.asked):
        if turn == 0:
            token = next_token(**encoder.prompts([[open_image(talk.image)]], [question]))
        else:
            cache.crop(prefix - cache.get_seq_length())
            token = next_token(input_ids=torch.tensor([encoder.kit.question(question)]))
        tokens: list[int] = []
        while token not in ends and len(tokens) < LONGEST_ANSWER:
            tokens.append(token)
            token = next_token(input_ids=torch.tensor([[token]]))
        said.append(encoder.text(tokens))
    return said


def schedules_of(table_file: Path, cuts: Sequence[float]) -> dict[str, Schedule]:
    """The schedules of a table at some cuts, by method and cut."""
    outcomes = json.loads(table_file.read_text(encoding="utf-8"))["outcomes"]
    return {
        f"{row['method']} {row['asked']:.1%}": Schedule.from_spec(row["runs"][0]["spec"])
        for row in outcomes
        if row["method"] in SKIPPED and row["asked"] in cuts
    }


def measured(model: Any, encoder: KitEncoder, given: argparse.Namespace) -> dict[str, Any]:
    """All methods: chosen for the first questions, and asked all of them."""
    found, cuts = talks(given.work / "images", given.images), tuple(given.cut or CUTS)
    file = given.table or RESULTS / f"vqa_combined_{given.model}.json"
    with progress(Console(stderr=True)) as step, remembering(tower_of(model)), torch.no_grad():
        result = opskip.evaluate(
            model,
            [talk.line(0) for talk in found],
            processor=encoder,
            schedules=schedules_of(file, cuts),
            methods=given.dropped or DROPPED,
            cuts=cuts,
            random_seeds=1,
            batch=20,
            answer_tokens=LONGEST_ANSWER,
            lower="eager",
            rounds=0,
            resume=given.work / given.model,
            step=step,
        )
        said = []
        for outcome in result.outcomes:
            run = outcome.runs[0]
            with running(model, run, "eager"):
                said.append([])
                for i, talk in enumerate(found):
                    step(f"{run.name}: all questions", i, len(found))
                    said[-1].append(answers(model, encoder, talk))
    outcomes = [
        {
            "method": outcome.method.split(" ")[0],
            "asked": outcome.asked or next((cut for cut in cuts if outcome.method.endswith(f" {cut:.1%}")), None),
            "flops_cut": round(outcome.cut, 6),
            "spec": outcome.runs[0].spec,
            "turns": [of_turn(found, said[0], told, [turn]) for turn in range(TURNS)],
            "later": of_turn(found, said[0], told, list(range(1, TURNS))),
        }
        for outcome, told in zip(result.outcomes, said, strict=True)
    ]
    counts = {task: sum(talk.task == task for talk in found) for task in ASKED}
    about = {**result.about, "images": counts, "turns": TURNS}
    return {"environment": environment("cpu", "float32"), "about": about, "outcomes": outcomes}


def of_turn(
    found: Sequence[Talk], dense: Sequence[Sequence[str]], told: Sequence[Sequence[str]], turns: Sequence[int]
) -> dict[str, Any]:
    """Accuracy and retained share of the questions of some turns, with the interval of a paired bootstrap of images."""
    places: dict[str, list[int]] = {}
    for i, (talk, _) in enumerate(each := [(talk, turn) for talk in found for turn in turns]):
        places.setdefault(talk.task, []).append(i)
    tasks = {
        task: TaskRows(tuple(own), tuple(number // len(turns) for number in range(len(own))))
        for task, own in places.items()
    }

    def right(all_said: Sequence[Sequence[str]]) -> list[float]:
        told_of = dict(zip((talk.image for talk in found), all_said, strict=True))
        return [float(is_right(told_of[talk.image][turn], (talk.asked[turn][1],))) for talk, turn in each]

    ours, theirs = right(told), right(dense)
    by_task = accuracies(ours, tasks)
    interval = bootstrap(ours, theirs, tasks, RESAMPLES, 0).retained
    kept = retained(by_task, accuracies(theirs, tasks))
    return {
        "accuracy": round(statistics.fmean(by_task.values()), 6),
        "retained": kept,
        "retained_interval": None if interval is None else [interval.low, interval.high],
    }


def table(content: dict[str, Any]) -> str:
    """A line for each method at each cut: what each question retains."""
    show: Callable[[Any], str] = lambda turn: (  # noqa: E731
        f"{turn['retained']:.1%} ({turn['retained_interval'][0]:.1%} - {turn['retained_interval'][1]:.1%})"
    )
    lines = ["| method | FLOPs cut | " + " | ".join(f"question {n + 1}" for n in range(TURNS)) + " |"]
    lines.append("| --- | " + "---: | " * (TURNS + 1))
    for outcome in content["outcomes"]:
        cells = " | ".join(show(turn) for turn in outcome["turns"])
        lines.append(f"| {outcome['method']} | {outcome['flops_cut']:.1%} | {cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, ask, print the table and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3_vl", choices=sorted(path.stem for path in CONFIGS.glob("*.json")))
    parser.add_argument("--images", type=int, default=25, help="of each task")
    parser.add_argument("--dropped", action="append", choices=DROPPED, help="ways to drop tokens; default: all")
    parser.add_argument("--cut", type=float, action="append", help="default: 0.337 and 0.5")
    parser.add_argument("--table", type=Path, help="an evaluation with schedules; default: vqa_combined_MODEL.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("vqa_turns"), help="folder for images and measurements")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    given = parser.parse_args(arguments)
    given.results.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    model, encoder = load_trained(given.model)
    content = measured(model, encoder, given)
    write_json(content, given.results / f"vqa_turns_{given.model}.json")
    write_whole(given.results / f"vqa_turns_{given.model}.md", table(content) + "\n")
    print(table(content))


if __name__ == "__main__":
    main()
