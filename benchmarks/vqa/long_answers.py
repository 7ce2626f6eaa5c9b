"""Long answers: a form of four lines is read out in order, every field with its value, letter by letter; or two forms.

python -m benchmarks.vqa.long_answers [--model qwen3_vl] [--forms 1] [--steps 900] [--limit 500] [--work FOLDER]

Dropping visual tokens is known to fail where the answer goes on reading the image; an operator that leaves rows out
keeps them in the cache. The suite's models give short answers, so one of them first learns this task for some minutes;
then all methods are asked at equal FLOPs. Writes `benchmarks/results/answers/vqa_long_MODEL.json` and `.md`
(`vqa_longer_MODEL` for two forms, with answers of 50 to 80 tokens): the share of answers that are right as a whole, and
of the eight or sixteen facts of an answer, by their place.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

import opskip_compile as opskip
from benchmarks.vqa.architectures import CONFIGS, EOS, Kit
from benchmarks.vqa.base import Example, Split, Task, generator
from benchmarks.vqa.draw import canvas, pixels
from benchmarks.vqa.evaluate import RESULTS, load_trained, remembering, tower_of
from benchmarks.vqa.export import export
from benchmarks.vqa.learning import products
from benchmarks.vqa.packing import Packed, Sample, pack
from benchmarks.vqa.tasks import forms
from opskip_compile.models.jsonl import read_lines
from opskip_compile.output.environment import environment
from opskip_compile.output.files import write_whole
from opskip_compile.output.progress import progress
from opskip_compile.schedule.validation import write_json

QUESTION = "what are the words?"
LINES, WORDS = 4, 8  # of a form: a label and a value in each
LONGEST = 72  # tokens of the answer to one form with its end
METHODS = ("operators+keep", "per-prompt", "operators", "fastv", "vtw", "random-tokens", "divprune")
CUTS = (0.337, 0.5)
ROWS = 192  # of a training sequence, for each form
BATCH, WARMUP, RATE = 8, 40, 1.5e-3


def make(name: str, forms_shown: int, split: Split, index: int) -> Example:
    """One or two forms of four lines, an image each, and all that stands in them, from the top."""
    rng = generator(name, split, index)
    images, words = [], []
    for _ in range(forms_shown):
        lines: list[tuple[str, str]] = []
        for field in rng.sample(list(forms.FIELDS), LINES):
            taken = {shown for _, shown in lines}
            lines.append((field, rng.choice([shown for shown in forms.FIELDS[field] if shown not in taken])))
        image, pen = canvas(rng)
        forms.draw_lines(pen, lines, rng)
        images.append(pixels(image))
        words += [word for line in lines for word in line]
    answer = " ".join(words)
    return Example(tuple(images), QUESTION, answer, QUESTION, (answer,))


TASKS = {
    count: Task(name, "all fields of small documents with their values, in order", partial(make, name, count))
    for count, name in ((1, "lists"), (2, "two lists"))
}


def spelled(kit: Kit, answer: str) -> list[int]:
    """The token ids of an answer, a token for each letter, and the end."""
    letters = [letter if not i else f"##{letter}" for word in answer.split() for i, letter in enumerate(word)]
    return kit.ids(*letters, EOS)


def batch(kit: Kit, seed: int, step: int, forms_shown: int = 1) -> Packed:
    """The training batch of one step, a function of its arguments only."""
    task = TASKS[forms_shown]
    rng = random.Random(f"{task.name}-{seed}-{step}")
    examples = [task.example("train", rng.randrange(task.size("train"))) for _ in range(BATCH)]
    asked = [(example, kit.question(example.question), spelled(kit, example.answer)) for example in examples]
    return pack([Sample(e.images, [(question, answer, [])]) for e, question, answer in asked], kit, ROWS * forms_shown)


def teach(model: Any, kit: Kit, steps: int, seed: int = 0, threads: int = 1, forms_shown: int = 1) -> Any:
    """The model after some steps of this task alone, with averaged weights; the given one is changed."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model.train()
    model.set_attn_implementation({"": "eager", "text_config": "eager", "vision_config": "sdpa"})
    average = copy.deepcopy(model)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    started, recent = time.monotonic(), 0.0
    for step in range(steps):
        packed = batch(kit, seed, step, forms_shown)
        with products(model.get_decoder(), torch.bfloat16):
            hidden = model.model(**packed.inputs, use_cache=False).last_hidden_state
        element, row, _ = packed.rows.unbind(1)
        loss = cross_entropy(model.lm_head(hidden[element, row]), packed.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP, max(0.02, (steps - step) / (0.6 * steps)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            keep = min(0.98, step / (step + 20))
            torch._foreach_lerp_(list(average.parameters()), weights, 1 - keep)
        recent += max(0.05, 1 / (step + 1)) * (loss.item() - recent)
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step} {time.monotonic() - started:.0f}s loss {recent:.4f}", flush=True)
    average.set_attn_implementation("sdpa")
    return average.eval()


def by_place(answers: Sequence[str], wanted: Sequence[str]) -> list[float]:
    """The share of answers that have the right word at each place."""
    pairs = [(said.split(), right.split()) for said, right in zip(answers, wanted, strict=True)]
    count = len(pairs[0][1])
    return [statistics.fmean(said[i : i + 1] == right[i : i + 1] for said, right in pairs) for i in range(count)]


def measured(model: Any, encoder: Any, given: argparse.Namespace) -> dict[str, Any]:
    """All methods on the test split."""
    task, work = TASKS[given.forms], given.work / str(given.forms)
    asked = export(task, "test", given.limit, work / "test")
    calibration = export(task, "calibration", given.calibration, work / "calibration")
    with progress(Console(stderr=True)) as step, remembering(tower_of(model)):
        result = opskip.evaluate(
            model,
            asked,
            processor=encoder,
            calibration=calibration,
            methods=given.method or METHODS,
            cuts=CUTS,
            random_seeds=1,
            calibration_limit=None,
            search_samples=given.search,
            batch=20,
            answer_tokens=LONGEST * given.forms,
            lower="eager",
            rounds=0,
            resume=work / "answers",
            step=step,
        )
    wanted = [str(line.answers[0]) for line in read_lines(asked)]
    said = read_answers(work / "answers" / "answers.jsonl", len(wanted))
    facts = {spec: [round(share, 4) for share in by_place(answers, wanted)] for spec, answers in said.items()}
    return {"environment": environment("cpu", "float32"), **result.to_dict(), "facts": facts}


def read_answers(journal: Path, count: int) -> dict[str, list[str]]:
    """By what was done: the answers to all questions, from the journal of an evaluation."""
    found: dict[str, dict[int, list[str]]] = {}
    for line in map(json.loads, journal.read_text(encoding="utf-8").splitlines()):
        if "key" in line and not line["key"].startswith("levels "):
            found.setdefault(line["key"], {})[line["item"]] = line["value"]
    whole = {key: [text for i in sorted(items) for text in items[i]] for key, items in found.items()}
    return {key: answers for key, answers in whole.items() if len(answers) == count}


def table(content: dict[str, Any]) -> str:
    """The methods in the order of the cuts: whole answers, and facts at the first and the last place."""
    lines = ["| method | FLOPs cut | whole answer right | facts right | first | last |", "| --- | " + "---: | " * 5]
    for outcome in content["outcomes"]:
        facts = content["facts"][outcome["runs"][0]["spec"]]
        cells = [outcome["accuracy"], statistics.fmean(facts), facts[0], facts[-1]]
        shares = " | ".join(f"{cell:.1%}" for cell in cells)
        lines.append(f"| {outcome['method']} | {outcome['flops_cut']:.1%} | {shares} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, teach, ask, print the table and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3_vl", choices=sorted(path.stem for path in CONFIGS.glob("*.json")))
    parser.add_argument("--forms", type=int, default=1, choices=sorted(TASKS), help="that are read out, one by one")
    parser.add_argument("--method", action="append", help="default: skipped, pruned and dropped")
    parser.add_argument("--steps", type=int, default=900, help="of training on this task")
    parser.add_argument("--limit", type=int, default=500, help="test questions")
    parser.add_argument("--calibration", type=int, default=300, help="calibration prompts")
    parser.add_argument("--search", type=int, default=80, help="of them in all that searches look at")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("vqa_long"), help="folder for the model, data and answers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    given = parser.parse_args(arguments)
    given.results.mkdir(parents=True, exist_ok=True)  # before the hour, not after it
    model, encoder = load_trained(given.model)
    taught = given.work / f"{given.model}_{given.forms}_{given.steps}.pt"
    if taught.exists():
        model.load_state_dict(torch.load(taught, weights_only=True))
    else:
        given.work.mkdir(parents=True, exist_ok=True)
        model = teach(model, encoder.kit, given.steps, threads=given.threads, forms_shown=given.forms)
        torch.save(model.state_dict(), taught)
    torch.set_num_threads(given.threads)
    content = {"steps": given.steps, **measured(model, encoder, given)}
    target = given.results / f"vqa_long{'er' * (given.forms > 1)}_{given.model}"
    write_json(content, target.with_suffix(".json"))
    write_whole(target.with_suffix(".md"), table(content) + "\n")
    print(table(content))


if __name__ == "__main__":
    main()
