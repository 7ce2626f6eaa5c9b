"""``opskip eval``: questions whose answers are known, to the dense model and to others that save as many FLOPs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opskip_compile.cli.options import AsJson, Batch, Device, DType, Modalities, Model, Plot, RowSet
from opskip_compile.cli.processes import processes
from opskip_compile.cli.schedules import schedule_of
from opskip_compile.output.console import check_targets, note, print_json, print_table

if TYPE_CHECKING:
    from opskip_compile.models.jsonl import Line

DEMO_QUESTIONS, DEMO_TASK = 500, "easy_vqa"
Files = Annotated[
    list[Path] | None,
    typer.Option(help="JSONL: image (or images, audio), prompt, answer and perhaps task on each line; repeatable."),
]


def evaluate(
    model: Model,
    data: Files = None,
    calibration: Annotated[
        list[Path] | None, typer.Option(help="JSONL of other prompts that operators and layers are chosen by.")
    ] = None,
    schedule: Annotated[
        list[str] | None, typer.Option(help="A schedule that takes part: spec text, a preset, or a .json file.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="One of those that docs/evaluation.md lists, such as operators+keep; all that can be if not given."
        ),
    ] = None,
    cut: Annotated[list[float] | None, typer.Option(help="Share of the prefill FLOPs that methods save.")] = None,
    rows: RowSet = "visual",
    modalities: Modalities = "image,video",
    random_seeds: Annotated[int, typer.Option(help="Runs of the method random.")] = 3,
    limit: Annotated[
        int | None,
        typer.Option(help=f"Questions at most for each task, evenly spread; demo: {DEMO_QUESTIONS} if not given."),
    ] = None,
    calibration_limit: Annotated[int, typer.Option(help="Prompts at most to calibrate on, evenly spread.")] = 64,
    batch: Batch = 1,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of an answer, at most; demo answers in one.")] = 16,
    eager: Annotated[
        bool, typer.Option("--eager", help="Answer without Inductor: quicker for small models. Times are Inductor's.")
    ] = False,
    rounds: Annotated[int, typer.Option(help="Rounds of timing the prefill; 0 for none.")] = 5,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap behind the intervals.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap, the calibration and the demo's questions.")] = 0,
    resume: Annotated[
        Path | None, typer.Option(help="Folder that keeps answers and measurements; go on with those that are there.")
    ] = None,
    device: Device = None,
    dtype: DType = None,
    out: Annotated[Path | None, typer.Option(help="Write everything to this JSON file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """What of a model's accuracy is retained: skipped operators beside layers, token dropping and chance."""
    from rich.console import Console

    from opskip_compile.errors import OptionError
    from opskip_compile.evaluation.config import CUTS, EvaluationConfig
    from opskip_compile.evaluation.evaluate import evaluate as run
    from opskip_compile.evaluation.result_tables import outcome_table
    from opskip_compile.models.devices import usable_device
    from opskip_compile.models.jsonl import read_lines
    from opskip_compile.models.loading import load_source
    from opskip_compile.models.packaged.model import NAME as DEMO
    from opskip_compile.output.environment import environment
    from opskip_compile.output.files import write_whole
    from opskip_compile.output.plots import check_plot
    from opskip_compile.output.progress import progress
    from opskip_compile.schedule.validation import write_json

    with processes() as first:
        if plot is not None:
            check_plot(plot)
        if first:
            check_targets(out=out, markdown=markdown, plot=plot)
        row_set: Any = rows  # the config checks it
        config = EvaluationConfig(
            methods=method or None,
            cuts=cut or CUTS,
            rows=row_set,
            modalities=modalities,
            random_seeds=random_seeds,
            limit=limit,
            calibration_limit=calibration_limit,
            batch=batch,
            answer_tokens=1 if model == DEMO else answer_tokens,
            lower="eager" if eager else "inductor",
            rounds=rounds,
            resamples=resamples,
            seed=seed,
            resume=resume,
        )
        usable_device(device, dtype)
        schedules = {_title(text): schedule_of(text, modalities) for text in schedule or []}
        with progress(Console(stderr=True, quiet=not first)) as step:
            questions: Any = data
            prompts: Any = calibration
            if model == DEMO and data is None:
                questions = _demo_questions("test", limit or DEMO_QUESTIONS, seed)
                prompts = prompts or _demo_questions("train", calibration_limit, seed)
            else:
                for file in [*(data or []), *(calibration or [])]:
                    read_lines(file)
            if questions is None:
                raise OptionError(
                    "data: needed for a model of your own: JSONL with image (or audio), prompt and answer on each line"
                )
            step("loading the model", 0, 0)
            whole, encoder = load_source(model, device, dtype, download=True)
            result = run(
                whole,
                questions,
                processor=encoder,
                calibration=prompts,
                schedules=schedules,
                config=config,
                step=step,
            )
        if not first:
            return
        weight = next(whole.parameters())
        figures = {
            "environment": environment(str(weight.device), str(weight.dtype).removeprefix("torch.")),
            **result.to_dict(),
        }
        if out is not None:
            write_json(figures, out)
        if markdown is not None:
            write_whole(markdown, result.markdown() + "\n")
        if plot is not None:
            result.plot(plot)
        if as_json:
            print_json(figures)
        else:
            print_table(outcome_table(result), least=90)
        for text in result.missing:
            note(f"missing: {text}")
        for written in filter(None, (out, markdown, plot)):
            note(f"wrote {written}")


def _title(text: str) -> str:
    """What a schedule is called: its file's name, or its text."""
    return Path(text).stem if text.lower().endswith(".json") else text


def _demo_questions(split: Any, count: int, seed: int) -> list[Line]:
    """Questions of easy-VQA, the same for a seed."""
    from opskip_compile.demo.easy_vqa import load_questions
    from opskip_compile.models.jsonl import Line

    questions = load_questions(split)
    random.Random(seed).shuffle(questions)
    return [
        Line(f"{split} question {i}", (q.image_path,), q.text, (q.answer,), DEMO_TASK)
        for i, q in enumerate(questions[:count])
    ]
