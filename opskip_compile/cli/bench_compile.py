"""``opskip bench compile``: what compiling takes, dense and skipped, cold and warm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opskip_compile.cli.bench_outputs import announced_progress, check_outputs, write_outputs
from opskip_compile.cli.bench_prompts import check_decoder, read_schedules
from opskip_compile.cli.options import AsJson, AttentionMask, BenchDevice, BenchDType, Figures
from opskip_compile.output.console import print_json, print_table


def compile_time(
    model: Annotated[str, typer.Option(help="A decoder's sizes, as of bench prefill --list.")] = "small",
    layers: Annotated[list[int] | None, typer.Option(min=1, help="May be given again; 2, 4, 8 if not given.")] = None,
    visual: Annotated[int, typer.Option(min=1, help="Visual rows.")] = 256,
    text: Annotated[int, typer.Option(min=1, help="Text rows.")] = 64,
    schedule: Annotated[str, typer.Option(help="Preset, spec text or .json file.")] = "late:0.5",
    attention_mask: AttentionMask = True,
    rounds: Annotated[int, typer.Option(min=1, help="Processes for each figure; the median is shown.")] = 1,
    device: BenchDevice = "cpu",
    dtype: BenchDType = "float32",
    eager: Annotated[bool, typer.Option("--eager", help="Without Inductor: capture and passes only.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the parts to this .png, .svg or .pdf.")] = None,
    out: Figures = None,
    as_json: AsJson = False,
) -> None:
    """Time to compile, dense and skipped: capture, passes, AOTAutograd, Inductor, cold and warm."""
    from opskip_compile.bench.compile_time import measure_starts
    from opskip_compile.bench.show_compile_time import figure, table, to_dict, with_dense
    from opskip_compile.errors import OptionError
    from opskip_compile.models.devices import check_place
    from opskip_compile.output.environment import environment
    from opskip_compile.timing.decoders import DECODERS

    check_decoder(model)
    place = check_place(device, dtype)
    check_outputs(out, plot)
    plans = {}
    for depth in layers or [2, 4, 8]:
        decoder = DECODERS[model].cut(depth)
        plan = read_schedules([schedule], depth)[schedule]
        if plan.is_empty:
            raise OptionError(f"schedule: {schedule!r} skips nothing in {depth} layers")
        plans[depth] = plan
    title = f"{decoder.title}, {visual} visual + {text} text rows, {schedule}, {place}, {dtype}"
    with announced_progress(title) as step:
        starts = measure_starts(
            model,
            plans,
            visual=visual,
            text=text,
            rounds=rounds,
            device=device,
            dtype=dtype,
            attention_mask=attention_mask,
            lower="eager" if eager else "inductor",
            step=step,
        )
    figures = [to_dict(start, dense) for start, dense in with_dense(starts)]
    report = {
        **environment(place, dtype),
        "model": model,
        "schedule": schedule,
        "attention_mask": attention_mask,
        "rounds": rounds,
        "results": figures,
    }
    if as_json:
        print_json(report)
    else:
        print_table(table(starts, title), least=125)
    write_outputs(report, lambda: figure(starts, title), out, plot)
