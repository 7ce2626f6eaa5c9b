"""``opskip calibrate``: from a model and a file of prompts to a schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from opskip_compile.cli.options import AsJson, Batch, Data, Device, DType, Limit, Modalities, Model, RowSet, Tokens
from opskip_compile.cli.processes import processes
from opskip_compile.cli.samples import model_and_samples
from opskip_compile.output.console import check_targets, note, print_json, print_table


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
    modalities: Modalities = "image,video",
    shares: Annotated[
        str, typer.Option(help="Shares of its visual rows that an operator may keep: 0.1,0.25,0.5, or none.")
    ] = "0.1,0.25,0.5",
    levels: Annotated[int, typer.Option(help="Schedules of which every prompt takes one; 1: one for all.")] = 1,
    search_samples: Annotated[
        int | None, typer.Option(help="Samples that the search looks at, at most; levels are fitted to all.")
    ] = None,
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

    with processes() as first:
        row_set: Any = rows  # the config checks it
        config = calibration.CalibrationConfig(
            budget=budget,
            method=method,
            level=level,
            search=search,
            rows=row_set,
            modalities=modalities,
            shares=_shares(shares),
            levels=levels,
            search_samples=search_samples,
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
        if first:
            check_targets(out=out, plot=plot, html=html, report=report, resume=resume)
        with progress(Console(stderr=True, quiet=not first)) as step:
            whole, samples = model_and_samples(model, data, config, limit, seed, device, dtype, step)
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


def _shares(text: str) -> tuple[float, ...]:
    """``0.1,0.25``, or ``none``."""
    from opskip_compile.errors import OptionError

    if text == "none":
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"shares: expected numbers with commas between them, or none, got {text!r}") from None
