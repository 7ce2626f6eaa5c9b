"""``opskip flops``: what a schedule saves on one prompt, and over image sizes as a table and a plot."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opskip_compile.cli.options import AsJson, Meant
from opskip_compile.cli.schedules import schedule_of
from opskip_compile.output.console import check_targets, note, print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from opskip_compile.schedule.flops import FlopsReport
    from opskip_compile.schedule.schedule import Schedule

_FIXED = 70  # columns that the table by layer state takes without its list of layers


def flops(
    preset: Annotated[str | None, typer.Option(help="A preset: its decoder and its schedule.")] = None,
    config: Annotated[Path | None, typer.Option(help="A transformers model folder or config.json.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Spec text, or a file that ends in .json; none is dense.")
    ] = None,
    modalities: Meant = None,
    visual: Annotated[int, typer.Option(help="Visual rows of the prompt, or those that the schedule means.")] = 1024,
    text: Annotated[int, typer.Option(help="Text rows of the prompt.")] = 64,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the savings over image sizes to this .png, .svg or .pdf.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count the FLOPs of one prefill, dense and skipped, by layer state and over image sizes."""
    from opskip_compile.errors import OptionError
    from opskip_compile.models.checkpoint import read_config
    from opskip_compile.output.plots import check_plot
    from opskip_compile.schedule.flops import count_flops
    from opskip_compile.schedule.flops_plot import save_plot, sweep
    from opskip_compile.schedule.geometry import Geometry
    from opskip_compile.schedule.presets import presets as published
    from opskip_compile.schedule.schedule import Schedule

    if (preset is None) == (config is None):
        raise OptionError("flops: expected either --preset or --config")
    if plot is not None:
        check_plot(plot)
    check_targets(plot=plot)
    if preset is not None:
        plan = Schedule.preset(preset)
        if schedule is None:
            plan = schedule_of(preset, modalities)
        chosen = next(item for item in published() if item.name == preset)
        geometry, model = chosen.geometry, chosen.model
    else:
        assert config is not None
        plan, geometry = Schedule(), Geometry.from_config(read_config(config))
        model = config.resolve().parent.name if config.is_file() else config.resolve().name
    if schedule is not None:
        plan = schedule_of(schedule, modalities)
    report = count_flops(geometry, visual_tokens=visual, text_tokens=text, schedule=plan)
    sizes = sweep(geometry, text, plan)
    if as_json:
        states = [layer.state for layer in plan.resolve(report.num_layers)]
        by_size = [_size_dict(size) for size in sizes]
        print_json({"schedule": plan.to_spec(), "layer_states": states, **report.to_dict(), "sizes": by_size})
    else:
        print_table(_states_table(report, plan))
        print_table(_sizes_table(sizes))
    if plot is not None:
        named = textwrap.shorten(plan.name or plan.to_spec(), 60, placeholder=" ...")
        save_plot(sizes, f"{model}: prefill FLOPs with schedule {named}", plot)
        note(f"wrote {plot}")


def _states_table(report: FlopsReport, schedule: Schedule) -> Table:
    from rich.console import Console
    from rich.table import Table

    from opskip_compile.output.numbers import prefix
    from opskip_compile.schedule.validation import format_layers

    groups: dict[tuple[str, str], list[int]] = {}
    for layer, states in enumerate(schedule.resolve(report.num_layers)):
        rows = " + ".join(dict.fromkeys(str(left_out) for left_out in (states.attention, states.ffn) if left_out))
        groups.setdefault((states.state, rows), []).append(layer)
    unit, letter = prefix(report.dense)
    prompt = f"{report.visual_tokens} visual + {report.text_tokens} text rows"
    table = Table(title=f"{letter}FLOPs of one prefill, {prompt}", title_justify="left")
    table.add_column("layer state", no_wrap=True)
    table.add_column("rows left out", overflow="fold", min_width=len("through_visual"))
    table.add_column("layers", overflow="fold")
    for name in ("count", "dense", "skipped", "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    room = max(10, Console().width - _FIXED)

    def add(state: str, rows: str, layers: list[int], named: str) -> None:
        part = [item for item in report.operators if item.layer in layers]
        dense, skipped = sum(item.dense for item in part), sum(item.skipped for item in part)
        sizes = (f"{dense / unit:.3f}", f"{skipped / unit:.3f}", f"{1 - skipped / dense:.1%}")
        table.add_row(state, rows, _broken(named, room), str(len(layers)), *sizes)

    for (state, rows), layers in groups.items():
        add(state, rows, layers, format_layers(tuple(layers)))
    table.add_section()
    add("total", "", list(range(report.num_layers)), "")
    table.caption = f"ideal speed-up {report.ideal_speedup:.2f}x"
    table.caption_justify = "left"
    return table


def _sizes_table(reports: Sequence[FlopsReport]) -> Table:
    from rich.table import Table

    from opskip_compile.output.numbers import prefix

    unit, letter = prefix(reports[0].dense)
    table = Table(title=f"{letter}FLOPs over image sizes, {reports[0].text_tokens} text rows", title_justify="left")
    for name in ("visual rows", "dense", "skipped", "cut", "ideal speed-up"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        counts = (f"{report.dense / unit:.3f}", f"{report.skipped / unit:.3f}")
        table.add_row(str(report.visual_tokens), *counts, f"{report.cut:.1%}", f"{report.ideal_speedup:.2f}x")
    return table


def _size_dict(report: FlopsReport) -> dict[str, Any]:
    names = ("visual_tokens", "text_tokens", "dense", "skipped", "cut", "ideal_speedup")
    return {name: getattr(report, name) for name in names}


def _broken(layers: str, width: int) -> str:
    """A list of layers in lines of at most ``width`` characters, broken behind commas."""
    lines = textwrap.wrap(layers.replace(",", ", "), width)
    return "\n".join(line.replace(" ", "") for line in lines)
