"""``opskip demo``: the packaged model, dense and skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opskip_compile.cli.options import AsJson
from opskip_compile.output.console import print_json


def demo(
    questions: Annotated[int, typer.Option(min=1, help="Test questions to answer.")] = 500,
    seed: Annotated[int, typer.Option(help="Moves the choice of questions and examples.")] = 0,
    schedule: Annotated[
        str | None, typer.Option(help="Another schedule: spec text, or a file that ends in .json.")
    ] = None,
    eager: Annotated[bool, typer.Option("--eager", help="Without Inductor: quick, but times are no measure.")] = False,
    model: Annotated[Path | None, typer.Option(help="Another model folder, made by benchmarks/demo_model.")] = None,
    as_json: AsJson = False,
) -> None:
    """A small trained model, dense and skipped: FLOPs, prefill time, answers, images."""
    from rich.console import Console

    from opskip_compile.demo.run import run_demo
    from opskip_compile.demo.show import show
    from opskip_compile.models.packaged.model import MODEL_DIR
    from opskip_compile.output.progress import progress

    with progress(Console(stderr=True)) as step:
        result = run_demo(
            questions=questions,
            seed=seed,
            schedule=schedule,
            eager=eager,
            model_dir=model or MODEL_DIR,
            step=step,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        show(result, Console(highlight=False))
