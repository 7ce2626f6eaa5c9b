"""``opskip calibrate`` and ``opskip diagnose``: from a model and a file of prompts to a schedule, and to the picture
behind it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opskip_compile.output.console import AsJson, check_targets, note, print_json, print_table

if TYPE_CHECKING:
    from opskip_compile.calibration.samples import Samples
    from opskip_compile.output.progress import Step
    from opskip_compile.schedule.schedule import Rows

LIMIT = 64  # samples of the demo model
Model = Annotated[str, typer.Option(help="demo, or the folder of a transformers model with weights and processor.")]
Data = Annotated[
    Path | None,
    typer.Option(help="JSONL: image (or images), prompt and perhaps answer on each line. demo has its own."),
]
Batch = Annotated[int, typer.Option(help="Prompts to a forward pass.")]
Limit = Annotated[
    int | None, typer.Option(help=f"Samples at most, evenly spread over the file; demo: {LIMIT} if not given.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; cuda where there is one if not given.")]
DType = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the model's if not given.")]
Tokens = Annotated[int, typer.Option(help="Tokens of the model's own answer, at most; demo answers in one.")]
RowSet = Annotated[str, typer.Option(help="Rows that are left out: visual, or through_visual.")]


def calibrate(
    model: Model,
    data: Data = None,
    budget: Annotated[
        str, typer.Option(help="Share of the prefill FLOPs to save (0.337), or '5.3 TFLOPs', '120ms', 'kl<0.01'.")
    ] = "0.337",
    out: Annotated[Path | None, typer.Option(help="Write the schedule to this .json file.")] = None,
    method: Annotated[str, typer.Option(help="probe, first_order, fisher or update_norm.")] = "probe",
    level: Annotated[str, typer.Option(help="Choose by operator, or by layer.")] = "operator",
    search: Annotated[str, typer.Option(help="joint: measure sets as they grow; scores: go by the method alone.")] = (
        "joint"
    ),
    rows: RowSet = "visual",
    holdout: Annotated[float, typer.Option(help="Share of the samples to judge the result by.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Of the split and of random controls.")] = 0,
    batch: Batch = 1,
    limit: Limit = None,
    answer_tokens: Tokens = 16,
    refresh: Annotated[int, typer.Option(help="Operators that are measured again before each step.")] = 8,
    controls: Annotated[bool, typer.Option(help="Also choose by layers, at random and the last layers.")] = True,
    stability: Annotated[bool, typer.Option(help="Also search on two halves of the samples.")] = True,
    whole_front: Annotated[bool, typer.Option(help="Go on beyond the budget until everything is skipped.")] = True,
    resume: Annotated[
        Path | None, typer.Option(help="Keep measurements here; go on with those that are there.")
    ] = None,
    device: Device = None,
    dtype: DType = None,
    plot: Annotated[Path | None, typer.Option(help="Draw scores and front to this .png, .svg or .pdf.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write everything as one page for a browser.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write everything to this JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find a schedule for a model by what its answers can observe; nothing is trained, no answers are needed."""
    from rich.console import Console

    from opskip_compile import calibration
    from opskip_compile.calibration.result_table import front_table
    from opskip_compile.errors import OptionError
    from opskip_compile.output.plots import check_plot
    from opskip_compile.output.progress import progress
    from opskip_compile.schedule.validation import write_json

    row_set: Any = rows  # the config checks it
    config = calibration.CalibrationConfig(
        budget=budget,
        method=method,
        level=level,
        search=search,
        rows=row_set,
        holdout=holdout,
        seed=seed,
        batch=batch,
        answer_tokens=answer_tokens,
        refresh=refresh,
        controls=controls,
        stability=stability,
        whole_front=whole_front,
        resume=resume,
    )
    for drawing in (plot, Path("page.svg") if html is not None else None):
        if drawing is not None:
            check_plot(drawing)
    if out is not None and out.suffix.lower() != ".json":
        raise OptionError(f"out: expected a file that ends in .json, got {str(out)!r}")
    check_targets(out=out, plot=plot, html=html, report=report, resume=resume)
    with _processes() as first, progress(Console(stderr=True, quiet=not first)) as step:
        whole, samples = _sources(model, data, config.rows, batch, limit, seed, answer_tokens, device, dtype, step)
        result = calibration.calibrate(whole, samples, config=config, step=step)
    if not first:
        return
    if out is not None:
        result.schedule.save(out)
    if plot is not None:
        result.plot(plot)
    if html is not None:
        result.to_html(html)
    if report is not None:
        write_json(result.report, report)
    if as_json:
        print_json(result.report)
    else:
        print_table(front_table(result), least=110)
        print(result)
    for written in filter(None, (out, plot, html, report)):
        note(f"wrote {written}")


def diagnose(
    model: Model,
    data: Data = None,
    rows: RowSet = "visual",
    batch: Batch = 1,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Of the demo's choice of questions.")] = 0,
    answer_tokens: Tokens = 16,
    device: Device = None,
    dtype: DType = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it to this .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show, layer by layer, how large the visual updates are and what the answer notices of them."""
    from rich.console import Console

    from opskip_compile import calibration
    from opskip_compile.output.plots import check_plot
    from opskip_compile.output.progress import progress

    checked: Any = {"rows": rows}
    row_set = calibration.CalibrationConfig(**checked, batch=batch, answer_tokens=answer_tokens).rows
    if plot is not None:
        check_plot(plot)
    check_targets(plot=plot)
    with _processes() as first, progress(Console(stderr=True, quiet=not first)) as step:
        whole, samples = _sources(model, data, row_set, batch, limit, seed, answer_tokens, device, dtype, step)
        diagnosis = calibration.diagnose(whole, samples, rows=row_set, step=step)
    if not first:
        return
    if plot is not None:
        diagnosis.plot(plot)
    if as_json:
        print_json(diagnosis.to_dict())
    else:
        print_table(diagnosis.table(), least=90)
    if plot is not None:
        note(f"wrote {plot}")


def _sources(
    model: str,
    data: Path | None,
    rows: Rows,
    batch: int,
    limit: int | None,
    seed: int,
    answer_tokens: int,
    device: str | None,
    dtype: str | None,
    step: Step,
) -> tuple[Any, Samples]:
    """The model and its samples; what can be wrong with a file is found before the weights are read."""
    from opskip_compile.calibration.files import FileSamples
    from opskip_compile.demo.samples import DemoSamples
    from opskip_compile.errors import OptionError
    from opskip_compile.models import inspection
    from opskip_compile.models.jsonl import read_lines
    from opskip_compile.models.loading import check_target, load_source

    check_target(device, dtype)
    if limit is not None and limit < 1:
        raise OptionError(f"limit: expected at least 1, got {limit}")
    if data is not None:
        step("reading the file", 0, 0)
        read_lines(data)
    elif model != inspection.DEMO:
        raise OptionError("data: needed for a model of your own: a JSONL file with image and prompt on each line")
    step("loading the model", 0, 0)
    whole, encoder = load_source(model, device, dtype)
    if model == inspection.DEMO:
        answer_tokens = 1
    if data is None:
        return whole, DemoSamples(whole, encoder.processor, limit or LIMIT, seed, rows)
    return whole, FileSamples(whole, data, encoder, rows, answer_tokens, batch, limit)


@contextmanager
def _processes() -> Iterator[bool]:
    """Under ``torchrun`` or ``accelerate launch``: with the other processes, which share the samples. Gives True in the
    process that speaks."""
    from torch import cuda, distributed

    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not distributed.is_available():
        yield True
        return
    ours = not distributed.is_initialized()
    if ours:
        distributed.init_process_group("nccl" if cuda.is_available() else "gloo")
    if cuda.is_available():
        cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        yield distributed.get_rank() == 0
    finally:
        if ours:
            distributed.destroy_process_group()
