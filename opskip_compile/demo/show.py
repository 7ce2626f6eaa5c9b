"""The demo's result in the terminal: tables, and images drawn with half blocks, two pixels to a cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.style import Style
from rich.table import Table
from rich.text import Text

from opskip_compile.demo.result import DemoResult, Example
from opskip_compile.demo.timed_models import EAGER, INDUCTOR, OPSKIP
from opskip_compile.models.images import load_image

PIXELS = 24  # width and height of a drawn image: 24 columns, 12 lines
COLUMN = 30
_SKIP = "[green]skip[/]"
_LONG = {
    EAGER: "eager, dense",
    INDUCTOR: "Inductor, dense",
    OPSKIP: "opskip, skipped",
}


def show(result: DemoResult, console: Console) -> None:
    """Print everything that the demo found."""
    for part in (
        _model(result),
        _operators(result),
        _costs(result),
        _times(result),
        _answers(result),
        _examples(result, console),
    ):
        console.print(part)
        console.print()
    console.print(closing_line(result), style="bold")


def closing_line(result: DemoResult) -> str:
    """The demo in one sentence."""
    said, flops = result.answers, result.flops
    return (
        f"{flops.cut:.1%} fewer FLOPs, decoder {result.speedup:.2f}x as fast as {result.baseline}, "
        f"accuracy {said.dense:.1%} -> {said.skipped:.1%}, {said.agreement:.1%} equal answers"
    )


def draw(path: Path, pixels: int, color: bool) -> Text:
    """An image in `pixels` columns and half as many lines; without `color`, its shape on the background."""
    image = load_image(path)
    raw = image.resize((pixels, pixels), 4).tobytes()  # 4 is PIL.Image.Resampling.BOX
    rows = [[tuple(raw[3 * (pixels * y + x) :][:3]) for x in range(pixels)] for y in range(pixels)]
    lines = []
    for y in range(0, pixels - 1, 2):
        line = Text()
        for top, bottom in zip(rows[y], rows[y + 1], strict=True):
            if color:
                line.append("▀", Style(color=_hex(top), bgcolor=_hex(bottom)))
            else:
                line.append(" ▄▀█"[2 * _inked(top, rows[0][0]) + _inked(bottom, rows[0][0])])
        lines.append(line)
    return Text("\n").join(lines)


def _hex(pixel: tuple[int, ...]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*pixel)


def _inked(pixel: tuple[int, ...], background: tuple[int, ...]) -> bool:
    return sum(abs(a - b) for a, b in zip(pixel, background, strict=True)) > 90


def _model(result: DemoResult) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    layers = result.flops.num_layers
    millions = f"{result.parameters / 1e6:.1f} M parameters"
    grid.add_row("model", f"Qwen3-VL with {layers} decoder layers, {millions}, trained on easy-VQA; float32, CPU")
    grid.add_row("schedule", f"{result.schedule.to_spec()} ({result.origin})")
    for name in ("source", "budget", "method", "command"):
        if name in result.schedule.provenance:
            grid.add_row(f"  {name}", Text(str(result.schedule.provenance[name]), style="dim"))
    return grid


def _operators(result: DemoResult) -> RenderableType:
    report = result.report
    if not report.rewritten:
        return f"[bold]Operators[/] nothing was rewritten: {escape(report.reason)}"
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("layer", "attention", "FFN", "layer state"):
        table.add_column(name, justify="right" if name == "layer" else "left")
    for layer, state in enumerate(report.layer_states()):
        attention = _SKIP if state in ("transform", "silent") else "full"
        ffn = _SKIP if state in ("attend", "silent") else "full"
        table.add_row(str(layer), attention, ffn, state)
    lines = [
        f"{len(report.skipped)} of {len(report.operators)} operators skipped; {report.nodes_before} graph "
        f"nodes became {report.nodes_after} in {report.milliseconds:.0f} ms",
        f"left on visual rows in skipped operators: {_counts(report.remaining()) or 'nothing'}",
    ]
    lines += [f"stays full: {m.layer}.{m.kind} ({m.source}): {m.reason}" for m in report.misses]
    lines += [f"computed in full: {s.operation} ({s.source}): {s.reason}" for s in report.stops]
    return Group("[bold]Operators[/] on visual rows", table, Text("\n".join(lines), style="dim"))


def _costs(result: DemoResult) -> RenderableType:
    flops = result.flops
    rows = f"{flops.visual_tokens} visual + {flops.text_tokens} text rows"
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("dense", "skipped", "cut", "ideal speed-up"):
        table.add_column(name, justify="right")
    sizes = (f"{flops.dense / 1e6:.0f} M", f"{flops.skipped / 1e6:.0f} M")
    table.add_row(*sizes, f"{flops.cut:.1%}", f"{flops.ideal_speedup:.2f}x")
    note = "text rows: the longest prompt's; the others are padded to its length."
    return Group(f"[bold]FLOPs[/] of the decoder for one prompt of {rows}", table, Text(note, style="dim"))


def _times(result: DemoResult) -> RenderableType:
    rounds, base = len(result.times[0].model), result.baseline
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in ("decoder", f"to {base}", "whole model", f"to {base}", "first call"):
        table.add_column(name, justify="right")
    for item in result.times:
        table.add_row(
            _LONG[item.name],
            f"{item.decoder_median * 1e3:.0f} ms",
            f"{item.decoder_ratio:.2f}x",
            f"{item.model_median * 1e3:.0f} ms",
            f"{item.model_ratio:.2f}x",
            f"{item.first_call:.1f} s",
        )
    note = "decoder: the compiled part. whole model: with the vision tower, always eager and dense."
    if base == EAGER:
        note += "\nwithout Inductor (--eager) times are no measure."
    title = f"[bold]Prefill[/] of {result.batch} prompts: median of {rounds} alternated rounds, {threads}"
    return Group(title, table, Text(note, style="dim"))


def _answers(result: DemoResult) -> RenderableType:
    said = result.answers
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("dense right", "skipped right", "retained", "equal answers"):
        table.add_column(name, justify="right")
    kept = f"{said.skipped / said.dense:.1%}" if said.dense else "-"
    table.add_row(f"{said.dense:.1%}", f"{said.skipped:.1%}", kept, f"{said.agreement:.1%}")
    note = f"largest difference from the eager oracle: {said.oracle_error:.1e} of the largest logit"
    return Group(f"[bold]Answers[/] to {said.questions} test questions", table, Text(note, style="dim"))


def _examples(result: DemoResult, console: Console) -> RenderableType:
    across = max(1, min(3, console.width // (COLUMN + 3)))
    grid = Table.grid(padding=(0, 3))
    for _ in range(across):
        grid.add_column(width=COLUMN)
    color = console.color_system is not None
    cells = [Group(draw(e.image, PIXELS, color), _caption(e)) for e in result.examples]
    for start in range(0, len(cells), across):
        if start:
            grid.add_row()
        grid.add_row(*cells[start : start + across])
    return grid


def _caption(example: Example) -> Text:
    text = Text(f"{example.question}\n", style="italic")
    text.append(f"answer   {example.answer}", Style(italic=False))
    for name, word in (("dense", example.dense), ("skipped", example.skipped)):
        right = word == example.answer
        style = Style(italic=False, color="green" if right else "red")
        text.append(f"\n{name:7}  {word} {'✓' if right else '✗'}", style)
    return text


def _counts(by_name: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in by_name.items())
