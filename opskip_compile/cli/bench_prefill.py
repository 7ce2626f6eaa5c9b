"""``opskip bench prefill``: time and memory of one prefill, dense, skipped and with token dropping."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opskip_compile.cli.bench_outputs import announced_progress, check_outputs, write_outputs
from opskip_compile.cli.bench_prompts import check_decoder, read_schedules
from opskip_compile.cli.options import AsJson, AttentionMask, BenchDevice, BenchDType, Figures
from opskip_compile.output.console import note, print_json, print_table

if TYPE_CHECKING:
    from opskip_compile.timing.decoders import Decoder
    from opskip_compile.timing.dropping import Dropping

DEFAULT = ("none", "late:0.33", "late:0.5", "attend:all", "silent:all")
FAST_V, VTW = "FastV-like", "VTW-like"


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
        typer.Option(help="Preset, spec text (silent:4-7, attend:all, late:0.5) or .json file. May be given again."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Also measure every schedule with this off (share_rotary, causal, onednn, regions)."),
    ] = None,
    attention_mask: AttentionMask = True,
    dropping: Annotated[bool, typer.Option(help="Also measure token dropping (FastV-like, VTW-like).")] = True,
    profile: Annotated[bool, typer.Option("--profile", help="Also show what the time goes to (CPU).")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    device: BenchDevice = "cpu",
    dtype: BenchDType = "float32",
    eager: Annotated[bool, typer.Option("--eager", help="Without Inductor: quick, but times are no measure.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw speed-up against FLOPs cut to this .png, .svg or .pdf.")
    ] = None,
    out: Figures = None,
    show_models: Annotated[bool, typer.Option("--list", help="List the decoders and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Time and peak memory of one prefill: eager, plain Inductor, schedules and token dropping, alternated."""
    import torch

    from opskip_compile.backend.settings import FLAGS
    from opskip_compile.bench.show_prefill import Case, figure, profile_table, table
    from opskip_compile.errors import OptionError
    from opskip_compile.models.devices import check_place
    from opskip_compile.output.environment import environment
    from opskip_compile.timing.decoders import DECODERS
    from opskip_compile.timing.prefill import never_slower, run_prefill

    if show_models:
        for name, decoder in DECODERS.items():
            print(f"{name:15} {decoder.title}, {decoder.geometry.num_layers} layers")
        return
    names = model or ["small"]
    for name in names:
        check_decoder(name)
    for off in without or ():
        if off not in FLAGS or not FLAGS[off]:
            raise OptionError(f"without: expected {', '.join(name for name, on in FLAGS.items() if on)}, got {off!r}")
    place = check_place(device, dtype)
    check_outputs(out, plot)
    plans = []
    for name in names:
        decoder = DECODERS[name].cut(layers or min(8, DECODERS[name].geometry.num_layers))
        plans.append((name, decoder, read_schedules(schedule or DEFAULT, decoder.geometry.num_layers)))
    cases = []
    for name, decoder, schedules in plans:
        for rows in visual or [1024]:
            droppings = token_dropping(decoder) if dropping else {}
            with announced_progress(f"{decoder.title}, {rows} visual rows") as step:
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
                note(f"slower than {measured[0].fastest}, the fastest dense run: {slow}")
    report = {
        **environment(place, dtype),
        "attention_mask": attention_mask,
        "rounds": rounds,
        "cases": [case.to_dict() for case in cases],
    }
    if as_json:
        print_json(report)
    write_outputs(report, lambda: figure(cases, f"{place}, {dtype}"), out, plot)


def token_dropping(decoder: Decoder) -> dict[str, Dropping]:
    """The papers' settings in shares of the depth: half of the rows after layer 2 of 32, and all after layer 16."""
    from opskip_compile.timing.dropping import Dropping

    layers = decoder.geometry.num_layers
    early, half = max(1, round(layers * 2 / 32)), max(1, layers // 2)
    return {f"{FAST_V}, layer {early}": Dropping(early, 0.5), f"{VTW}, layer {half}": Dropping(half, 1.0)}
