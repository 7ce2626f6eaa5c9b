"""The command ``opskip``: each subcommand calls one function of the package and prints what it returns.

Bad input ends with exit code 2 and one line on stderr. With ``--json``, stdout holds JSON and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from opskip_compile import __version__
from opskip_compile.cli.bench import bench
from opskip_compile.cli.calibrate import calibrate, diagnose
from opskip_compile.cli.eval import evaluate
from opskip_compile.cli.flops import flops
from opskip_compile.cli.inspect import inspect
from opskip_compile.errors import OpSkipError
from opskip_compile.output.console import AsJson, note, print_json, print_table

if TYPE_CHECKING:
    from opskip_compile.schedule.presets import Preset

PRESET_ROWS = (576, 1024, 2048)
PRESET_TEXT = 64
NARROW = 96  # columns that the table of presets needs


class _Commands(TyperGroup):
    """Turns what the package refuses into one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OpSkipError as error:
            note(str(error))
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    help="A torch.compile backend that lets multimodal LLMs skip visual rows, per layer and operator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"opskip {__version__}")
        raise typer.Exit


@app.callback()
def opskip(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """What stands before a subcommand."""


@app.command()
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

    from opskip_compile.demo.data import MODEL_DIR
    from opskip_compile.demo.run import run_demo
    from opskip_compile.demo.show import show
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


app.command()(inspect)
app.command()(calibrate)
app.command()(diagnose)
app.command("eval")(evaluate)


@app.command()
def presets(as_json: AsJson = False) -> None:
    """Published schedules, their source, and the share of the prefill FLOPs that they cut."""
    from opskip_compile.schedule.presets import presets as published

    if as_json:
        print_json([_preset_dict(preset) for preset in published()])
        return
    from rich.console import Console
    from rich.table import Table

    wide = Console().width >= NARROW  # else the name has to tell the model
    title = f"FLOPs cut at {', '.join(map(str, PRESET_ROWS))} visual tokens with {PRESET_TEXT} of text"
    table = Table(title=title, title_justify="left")
    for name in ("name", "model", "source") if wide else ("name", "source"):
        table.add_column(name, no_wrap=True)
    for rows in PRESET_ROWS:
        table.add_column(str(rows), justify="right", no_wrap=True)
    for preset in published():
        cuts = (f"{preset.cut(rows, PRESET_TEXT):.1%}" for rows in PRESET_ROWS)
        paper = ", ".join(preset.source.split(", ")[:2])
        name = preset.name + (" *" if preset.default else "")
        table.add_row(name, *([preset.model] if wide else []), paper, *cuts)
    table.caption = "* used for this model if no schedule is given"
    table.caption_justify = "left"
    print_table(table)


app.command()(flops)
app.add_typer(bench, name="bench")


def main() -> None:
    """Entry point of ``opskip`` and ``python -m opskip_compile``."""
    app(prog_name="opskip")


def _preset_dict(preset: Preset) -> dict[str, Any]:
    cuts = {str(rows): preset.cut(rows, PRESET_TEXT) for rows in PRESET_ROWS}
    return {
        "name": preset.name,
        "model": preset.model,
        "model_type": preset.model_type,
        "source": preset.source,
        "spec": preset.spec,
        "default": preset.default,
        "text_tokens": PRESET_TEXT,
        "cut": cuts,
    }
