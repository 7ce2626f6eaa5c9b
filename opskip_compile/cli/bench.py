"""``opskip bench``: how much of a FLOPs cut becomes time, on the machine at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opskip_compile.output.console import AsJson, check_targets, note, print_json, print_table

if TYPE_CHECKING:
    from opskip_compile.bench.decoders import Decoder
    from opskip_compile.bench.dropping import Dropping
    from opskip_compile.schedule.schedule import Schedule

bench = typer.Typer(help="Measure prefill against plain Inductor.", no_args_is_help=True)
DEFAULT = ("none", "late:0.33", "late:0.5", "attend:all", "silent:all")
FAST_V, VTW = "FastV-like", "VTW-like"


@bench.command()
def prefill(
    model: Annotated[
        list[str] | None, typer.Option(help="A decoder's sizes: see --list. May be given again; small if not given.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers to keep; 8, or as many as there are if not given.")
    ] = None,
    visual: Annotated[
        list[int] | None, typer.Option(min=1, help="Visual rows; may be given again; 1024 if not given.")
    ] = None,
    text: Annotated[int, typer.Option(min=1, help="Text rows.")] = 64,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            help="Preset, spec text or .json file; 'all' stands for the last layer's range. May be given again."
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Also measure every schedule with this off (share_rotary, causal, onednn, regions)."),
    ] = None,
    attention_mask: Annotated[
        bool, typer.Option(help="Give the decoder an attention mask of ones, as processors do.")
    ] = True,
    dropping: Annotated[bool, typer.Option(help="Also measure token dropping (FastV-like, VTW-like).")] = True,
    profile: Annotated[bool, typer.Option("--profile", help="Also show what the time goes to (CPU).")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    eager: Annotated[bool, typer.Option("--eager", help="Without Inductor: quick, but times are no measure.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw speed-up against FLOPs cut to this .png, .svg or .pdf.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    show_models: Annotated[bool, typer.Option("--list", help="List the decoders and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Time and peak memory of one prefill: eager, plain Inductor, schedules and token dropping, alternated."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own messages
    import torch

    from opskip_compile.backend.settings import FLAGS
    from opskip_compile.bench.decoders import DECODERS
    from opskip_compile.bench.machine import check_place, environment
    from opskip_compile.bench.prefill import never_slower, run_prefill
    from opskip_compile.bench.show import Case, figure, profile_table, table
    from opskip_compile.errors import OptionError
    from opskip_compile.output import plots

    if show_models:
        for name, decoder in DECODERS.items():
            print(f"{name:15} {decoder.title}, {decoder.geometry.num_layers} layers")
        return
    names = model or ["small"]
    for name in names:
        if name not in DECODERS:
            raise OptionError(f"model: expected one of {', '.join(DECODERS)}, got {name!r}")
    for off in without or ():
        if off not in FLAGS or not FLAGS[off]:
            raise OptionError(f"without: expected {', '.join(name for name, on in FLAGS.items() if on)}, got {off!r}")
    place = check_place(device, dtype)
    if plot is not None:
        plots.check_plot(plot)
    check_targets(plot=plot, out=out)
    plans = []
    for name in names:
        decoder = DECODERS[name].cut(layers or min(8, DECODERS[name].geometry.num_layers))
        plans.append((name, decoder, read_schedules(schedule or DEFAULT, decoder.geometry.num_layers)))
    cases = []
    for name, decoder, schedules in plans:
        for rows in visual or [1024]:
            droppings = token_dropping(decoder) if dropping else {}
            with _progress(f"{decoder.title}, {rows} visual rows") as step:
                measured = run_prefill(
                    decoder,
                    schedules,
                    droppings,
                    visual=rows,
                    text=text,
                    rounds=rounds,
                    device=device,
                    dtype=getattr(torch, dtype),
                    without=without or (),
                    attention_mask=attention_mask,
                    lower="eager" if eager else "inductor",
                    profile=profile,
                    step=step,
                )
            full = DECODERS[name].geometry.num_layers
            case = Case(decoder.title, decoder.geometry.num_layers, full, rows, text, tuple(measured))
            cases.append(case)
            if not as_json:
                print_table(table(case), least=110)
                if profile:
                    print_table(profile_table(case), least=100)
            for slow in never_slower(measured) if not eager else ():
                note(f"slower than plain Inductor: {slow}")
    report = {
        **environment(place, dtype),
        "attention_mask": attention_mask,
        "rounds": rounds,
        "cases": [case.to_dict() for case in cases],
    }
    if as_json:
        print_json(report)
    _write(report, lambda: figure(cases, f"{place}, {dtype}"), out, plot)


@bench.command("compile")
def compile_time(
    model: Annotated[str, typer.Option(help="A decoder's sizes, as of bench prefill --list.")] = "small",
    layers: Annotated[list[int] | None, typer.Option(min=1, help="May be given again; 2, 4, 8 if not given.")] = None,
    visual: Annotated[int, typer.Option(min=1, help="Visual rows.")] = 256,
    text: Annotated[int, typer.Option(min=1, help="Text rows.")] = 64,
    schedule: Annotated[str, typer.Option(help="Spec text; 'all' stands for all layers.")] = "late:0.5",
    attention_mask: Annotated[
        bool, typer.Option(help="Give the decoder an attention mask of ones, as processors do.")
    ] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Processes for each figure; the median is shown.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    eager: Annotated[bool, typer.Option("--eager", help="Without Inductor: capture and passes only.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the parts to this .png, .svg or .pdf.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time to compile, dense and skipped: capture, passes, AOTAutograd, Inductor, cold and warm."""
    from opskip_compile.bench.compile_time import measure_starts
    from opskip_compile.bench.decoders import DECODERS
    from opskip_compile.bench.machine import check_place, environment
    from opskip_compile.bench.show_compile import figure, table, to_dict, with_dense
    from opskip_compile.errors import OptionError
    from opskip_compile.output import plots

    if model not in DECODERS:
        raise OptionError(f"model: expected one of {', '.join(DECODERS)}, got {model!r}")
    place = check_place(device, dtype)
    if plot is not None:
        plots.check_plot(plot)
    check_targets(plot=plot, out=out)
    specs = {}
    for depth in layers or [2, 4, 8]:
        decoder = DECODERS[model].cut(depth)
        plan = read_schedules([schedule], depth)[schedule]
        if plan.is_empty:
            raise OptionError(f"schedule: {schedule!r} skips nothing in {depth} layers")
        specs[depth] = plan.to_spec()
    title = f"{decoder.title}, {visual} visual + {text} text rows, {schedule}, {place}, {dtype}"
    with _progress(title) as step:
        starts = measure_starts(
            model,
            specs,
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
    _write(report, lambda: figure(starts, title), out, plot)


@bench.command()
def passes(
    layers: Annotated[
        list[int] | None, typer.Option(min=1, help="May be given again; 9, 18, 36, 72 if not given.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs for each figure; the median is shown.")] = 3,
    matchers: Annotated[bool, typer.Option(help="Also time two pattern matchers.")] = True,
    plot: Annotated[Path | None, typer.Option(help="Draw the times to this .png, .svg or .pdf.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time of the passes over decoders of growing depth, and of finding the operators in three ways."""
    from opskip_compile.bench.machine import check_place, environment
    from opskip_compile.bench.scaling import measure_depths
    from opskip_compile.bench.show_scaling import figure, table, to_dict
    from opskip_compile.output import plots

    place = check_place("cpu", "float32")
    if plot is not None:
        plots.check_plot(plot)
    check_targets(plot=plot, out=out)
    title = f"Qwen3-VL decoders, every operator skipped, {place}"
    with _progress(title) as step:
        depths = measure_depths(sorted(set(layers or [9, 18, 36, 72])), runs=runs, matchers=matchers, step=step)
    report = {**environment(place, "float32"), "runs": runs, "results": [to_dict(depth) for depth in depths]}
    if as_json:
        print_json(report)
    else:
        print_table(table(depths, title), least=110)
    _write(report, lambda: figure(depths, title), out, plot)


def _write(report: object, figure: Callable[[], Any], out: Path | None, plot: Path | None) -> None:
    """Write the figures and the plot to where they are wanted."""
    import json

    from opskip_compile.output import plots
    from opskip_compile.output.files import write_whole

    if out is not None:
        write_whole(out, (json.dumps(report, indent=1) + "\n").encode())
        note(f"wrote {out}")
    if plot is not None:
        plots.write_figure(figure, plot)
        note(f"wrote {plot}")


def read_schedules(given: Sequence[str], layers: int) -> dict[str, Schedule]:
    """Name -> schedule for a decoder that was cut to ``layers``.

    A published preset is thinned to the layers that are left; ``all`` in a spec stands for all layers.
    """
    from opskip_compile.bench.decoders import thinned
    from opskip_compile.schedule.presets import presets
    from opskip_compile.schedule.schedule import Schedule

    known = {preset.name for preset in presets()}
    found = {}
    for text in given:
        if text in known:
            found[text] = thinned(Schedule.preset(text), layers)
        else:
            found[text] = Schedule.of(text.replace(":all", f":0-{layers - 1}"))
        found[text].resolve(layers)
    return found


def token_dropping(decoder: Decoder) -> dict[str, Dropping]:
    """The papers' settings in shares of the depth: half of the rows after layer 2 of 32, and all after layer 16."""
    from opskip_compile.bench.dropping import Dropping

    layers = decoder.geometry.num_layers
    early, half = max(1, round(layers * 2 / 32)), max(1, layers // 2)
    return {f"{FAST_V}, layer {early}": Dropping(early, 0.5), f"{VTW}, layer {half}": Dropping(half, 1.0)}


def _progress(what: str) -> Any:
    from rich.console import Console

    from opskip_compile.output.progress import progress

    note(what)
    return progress(Console(stderr=True))
