"""``opskip bench passes``: what the passes take as decoders grow deeper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opskip_compile.cli.bench_outputs import announced_progress, check_outputs, write_outputs
from opskip_compile.cli.options import AsJson, Figures
from opskip_compile.output.console import print_json, print_table


def passes(
    layers: Annotated[
        list[int] | None, typer.Option(min=1, help="May be given again; 9, 18, 36, 72 if not given.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs for each figure; the median is shown.")] = 3,
    matchers: Annotated[bool, typer.Option(help="Also time two pattern matchers.")] = True,
    plot: Annotated[Path | None, typer.Option(help="Draw the times to this .png, .svg or .pdf.")] = None,
    out: Figures = None,
    as_json: AsJson = False,
) -> None:
    """Time of the passes over decoders of growing depth, and of finding the operators in three ways."""
    from opskip_compile.bench.pass_scaling import measure_depths
    from opskip_compile.bench.show_pass_scaling import figure, table, to_dict
    from opskip_compile.models.devices import check_place
    from opskip_compile.output.environment import environment

    place = check_place("cpu", "float32")
    check_outputs(out, plot)
    title = f"Qwen3-VL decoders, every operator skipped, {place}"
    with announced_progress(title) as step:
        depths = measure_depths(sorted(set(layers or [9, 18, 36, 72])), runs=runs, matchers=matchers, step=step)
    report = {**environment(place, "float32"), "runs": runs, "results": [to_dict(depth) for depth in depths]}
    if as_json:
        print_json(report)
    else:
        print_table(table(depths, title), least=110)
    write_outputs(report, lambda: figure(depths, title), out, plot)
