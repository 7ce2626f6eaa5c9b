"""The demo: one small trained model, dense and skipping visual rows, compared in FLOPs, time and answers.

`run_demo` measures and returns plain data; `opskip_compile.demo.show` draws it.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from opskip_compile import api
from opskip_compile.backend.reports import REPORTS
from opskip_compile.demo import easy_vqa, timed_models
from opskip_compile.demo.result import Answers, DemoResult, Example
from opskip_compile.demo.timed_models import TimedModel
from opskip_compile.errors import OpSkipError
from opskip_compile.models.oracle import oracle
from opskip_compile.models.packaged.model import (
    MODEL_DIR,
    SCHEDULE_FILE,
    DemoProcessor,
    load_model,
    load_processor,
    predict,
)
from opskip_compile.output.progress import Step
from opskip_compile.schedule.flops import FlopsReport, count_flops
from opskip_compile.schedule.schedule import Schedule

BATCH = 50
EXAMPLES = 6


def run_demo(
    *,
    questions: int = 500,
    seed: int = 0,
    schedule: Schedule | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    eager: bool = False,
    model_dir: Path = MODEL_DIR,
    rounds: int = 7,
    step: Step = lambda what, done, total: None,
) -> DemoResult:
    """Run the demo.

    Args:
        questions: how many test questions are answered, evenly spread over the test split.
        seed: moves the choice of questions, and picks the examples.
        schedule: anything that `Schedule.of` takes; None is the packaged one, found on training questions.
        eager: run the rewritten graph as it is, without Inductor; times are then no measure.
        model_dir: a folder that ``benchmarks/demo_model`` exported.
        rounds: timed rounds.
        step: called with what is done now, steps done, and steps in all (0 if not known).

    Raises:
        OpSkipError: a missing package, model or compiler, or a schedule that does not fit.
    """
    started = time.perf_counter()
    step("loading", 0, 0)
    if not eager:
        _check_compiler()
    if not (model_dir / "config.json").is_file():  # else transformers would look for it on the network
        raise OpSkipError(f"model: there is no demo model in {str(model_dir)!r}")
    asked = spread(easy_vqa.load_questions("test"), questions, seed)
    processor, model = load_processor(model_dir), load_model(model_dir)
    plan = Schedule.of(SCHEDULE_FILE if schedule is None else schedule)
    plan.resolve(model.config.get_text_config().num_hidden_layers)
    batches = padded_batches(asked, processor, step)
    race = [timed_models.eager(model), timed_models.opskip(model, plan, "eager" if eager else "inductor")]
    if not eager:
        race.insert(1, timed_models.inductor(model))
    plain, dense, skipping = race[0], race[-2], race[-1]
    earlier = REPORTS.count
    with torch.no_grad():
        times = timed_models.race(race, dense.name, batches[0], rounds, step)
        said = {c.name: answers(c, batches, step) for c in (dense, skipping)}
        error = _oracle_error(plain, skipping, plan, batches[0])
    words = {name: predict(logits, processor)[: len(asked)] for name, logits in said.items()}
    before, after = words[dense.name], words[skipping.name]
    return DemoResult(
        model=str(model_dir),
        parameters=sum(p.numel() for p in model.parameters()),
        schedule=plan,
        origin="packaged with the demo" if schedule is None else "given",
        report=api.last_report(),
        graphs=sum(bool(report.operators) for report in REPORTS.since(earlier)),
        flops=_flops(model, plan, batches[0]),
        batch=len(batches[0]["input_ids"]),
        threads=torch.get_num_threads(),
        baseline=dense.name,
        times=times,
        answers=Answers(
            len(asked),
            easy_vqa.accuracy(before, asked),
            easy_vqa.accuracy(after, asked),
            easy_vqa.agreement(before, after),
            error,
        ),
        examples=_examples(asked, before, after, seed),
        seconds=time.perf_counter() - started,
    )


def spread(questions: Sequence[easy_vqa.Question], count: int, seed: int) -> list[easy_vqa.Question]:
    """`count` of the questions at equal distances; `seed` moves the first one. 0 is the first question."""
    if not 0 < count <= len(questions):
        raise OpSkipError(f"questions: expected 1 to {len(questions)}, got {count}")
    shift = random.Random(seed).randrange(-(-len(questions) // count)) if seed else 0
    return [questions[(i * len(questions) // count + shift) % len(questions)] for i in range(count)]


def padded_batches(
    questions: Sequence[easy_vqa.Question], processor: DemoProcessor, step: Step
) -> list[dict[str, Tensor]]:
    """Inputs of equal shape for all questions, so that one compilation serves every batch.

    All prompts are padded on the left to the length of the longest one, and the last batch is filled up with
    its last question.
    """
    size = min(BATCH, len(questions))
    batches = []
    for start in range(0, len(questions), size):
        step("reading images", start, len(questions))
        part = list(questions[start : start + size])
        batches.append(easy_vqa.collate(part + part[-1:] * (size - len(part)), processor))
    length = max(inputs["input_ids"].shape[1] for inputs in batches)
    fill = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
    for inputs in batches:
        missing = length - inputs["input_ids"].shape[1]
        for name, value in fill.items():
            inputs[name] = functional.pad(inputs[name], (missing, 0), value=value)
    return batches


def answers(model: TimedModel, batches: Sequence[Mapping[str, Tensor]], step: Step) -> Tensor:
    """The logits ``(questions, 1, vocabulary)`` from which the answers are read."""
    logits = []
    for done, inputs in enumerate(batches):
        step(f"answering: {model.name}", done, len(batches))
        logits.append(model(inputs)[0])
    step(f"answering: {model.name}", len(batches), len(batches))
    return torch.cat(logits)


def _oracle_error(plain: TimedModel, skipping: TimedModel, schedule: Schedule, inputs: Mapping[str, Tensor]) -> float:
    logits = skipping(inputs)[0]
    with oracle(plain.model, schedule, inputs["mm_token_type_ids"].bool()):
        wanted = plain(inputs)[0]
    return float((logits - wanted).abs().max() / wanted.abs().max())


def _flops(model: Any, schedule: Schedule, inputs: Mapping[str, Tensor]) -> FlopsReport:
    visual = int(inputs["mm_token_type_ids"][0].sum())
    # The longest prompt has one row, vision start, before its visual ones; shorter ones are padded to it.
    rows = {"visual_tokens": visual, "text_tokens": inputs["input_ids"].shape[1] - visual, "text_before": 1}
    return count_flops(model, schedule=schedule, **rows)


def _examples(
    asked: Sequence[easy_vqa.Question], before: Sequence[str], after: Sequence[str], seed: int
) -> tuple[Example, ...]:
    by_image = {q.image_id: i for i, q in enumerate(asked)}
    picked = random.Random(seed).sample(sorted(by_image.values()), min(EXAMPLES, len(by_image)))
    return tuple(Example(asked[i].image_path, asked[i].text, asked[i].answer, before[i], after[i]) for i in picked)


def _check_compiler() -> None:
    names = (os.environ.get("CXX") or "g++", "clang++", "cl")
    if not any(shutil.which(name) for name in names):
        raise OpSkipError("no C++ compiler was found, and Inductor needs one; try: opskip demo --eager")
