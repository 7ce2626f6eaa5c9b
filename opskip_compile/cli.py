"""The command ``opskip``: each subcommand calls one function of the package and prints what it returns.

Bad input ends with exit code 2 and one line on stderr. With ``--json``, stdout holds JSON and nothing else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from opskip_compile.errors import OpSkipError

if TYPE_CHECKING:
    from rich.table import Table

    from opskip_compile.flops import FlopsReport
    from opskip_compile.presets import Preset
    from opskip_compile.schedule import Schedule

PRESET_ROWS = (576, 1024, 2048)
PRESET_TEXT = 64


class _Commands(TyperGroup):
    """Turns what the package refuses into one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OpSkipError as error:
            print(f"opskip: {' '.join(str(error).split())}", file=sys.stderr)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    help="A torch.compile backend that lets multimodal LLMs skip visual rows, per layer and operator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]


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
    from opskip_compile.demo.show import progress, show

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
        _print_json(result.to_dict())
    else:
        show(result, Console(highlight=False))


@app.command()
def presets(as_json: AsJson = False) -> None:
    """Published schedules, their source, and the share of the prefill FLOPs that they cut."""
    from opskip_compile.presets import presets as published

    if as_json:
        _print_json([_preset_dict(preset) for preset in published()])
        return
    from rich.table import Table

    title = f"FLOPs cut at {', '.join(map(str, PRESET_ROWS))} visual tokens with {PRESET_TEXT} of text"
    table = Table(title=title, title_justify="left")
    for name in ("name", "model", "source"):
        table.add_column(name, no_wrap=True)
    for rows in PRESET_ROWS:
        table.add_column(str(rows), justify="right", no_wrap=True)
    for preset in published():
        cuts = (f"{preset.cut(rows, PRESET_TEXT):.1%}" for rows in PRESET_ROWS)
        paper = ", ".join(preset.source.split(", ")[:2])
        table.add_row(preset.name + (" *" if preset.default else ""), preset.model, paper, *cuts)
    table.caption = "* used for this model if no schedule is given"
    table.caption_justify = "left"
    _print_table(table)


@app.command()
def flops(
    preset: Annotated[str | None, typer.Option(help="A preset: its decoder and its schedule.")] = None,
    config: Annotated[Path | None, typer.Option(help="A transformers model folder or config.json.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Spec text, or a file that ends in .json; none is dense.")
    ] = None,
    visual: Annotated[int, typer.Option(help="Visual rows of the prompt.")] = 1024,
    text: Annotated[int, typer.Option(help="Text rows of the prompt.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Count the FLOPs of one prefill, dense and skipped, by layer state."""
    from opskip_compile.errors import OptionError
    from opskip_compile.flops import count_flops
    from opskip_compile.presets import presets as published
    from opskip_compile.schedule import Schedule

    if (preset is None) == (config is None):
        raise OptionError("flops: expected either --preset or --config")
    geometry: Any
    if preset is not None:
        plan = Schedule.preset(preset)
        geometry = next(item.geometry for item in published() if item.name == preset)
    else:
        assert config is not None
        plan, geometry = Schedule(), _read_config(config)
    if schedule is not None:
        plan = Schedule.of(schedule)
    report = count_flops(geometry, visual_tokens=visual, text_tokens=text, schedule=plan)
    if as_json:
        states = [layer.state for layer in plan.resolve(report.geometry.num_layers)]
        _print_json({"schedule": plan.to_spec(), "layer_states": states, **report.to_dict()})
    else:
        _print_table(_flops_table(report, plan))


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


def _flops_table(report: FlopsReport, schedule: Schedule) -> Table:
    from rich.table import Table

    from opskip_compile.tables import format_layers

    groups: dict[tuple[str, str], list[int]] = {}
    for layer, found in enumerate(schedule.resolve(report.geometry.num_layers)):
        rows = " + ".join(dict.fromkeys(filter(None, (found.attention, found.ffn))))
        groups.setdefault((found.state, rows), []).append(layer)
    unit, letter = next(((u, s) for u, s in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if report.dense >= u), (1.0, ""))
    prompt = f"{report.visual_tokens} visual + {report.text_tokens} text rows"
    table = Table(title=f"{letter}FLOPs of one prefill, {prompt}", title_justify="left")
    for name in ("layer state", "rows left out", "layers"):
        table.add_column(name, overflow="fold")
    for name in ("count", "dense", "skipped", "cut"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(state: str, rows: str, layers: list[int], named: str) -> None:
        part = [item for item in report.operators if item.layer in layers]
        dense, skipped = sum(item.dense for item in part), sum(item.skipped for item in part)
        sizes = (f"{dense / unit:.3f}", f"{skipped / unit:.3f}", f"{1 - skipped / dense:.1%}")
        table.add_row(state, rows, named, str(len(layers)), *sizes)

    for (state, rows), layers in groups.items():
        add(state, rows, layers, format_layers(tuple(layers)))
    table.add_section()
    add("total", "", list(range(report.geometry.num_layers)), "")
    table.caption = f"ideal speed-up {report.ideal_speedup:.2f}x"
    table.caption_justify = "left"
    return table


def _read_config(path: Path) -> Any:
    """The transformers config in a folder or a JSON file; nothing is downloaded or executed."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise OpSkipError(f"config: there is no file {str(file)!r}")
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(file, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a config class may fail with anything on a file that it does not expect
        raise OpSkipError(f"config: {str(file)!r} is no transformers config: {str(error)[:200]}") from error


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, default=str))


def _print_table(table: Table) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)
