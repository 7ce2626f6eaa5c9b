"""A graph diff for the terminal: a table by layer and operator, and the aligned code of one operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from opskip_compile.output.numbers import prefix
from opskip_compile.report.diff_data import STATUSES, DiffData, DiffLine, LineGroup
from opskip_compile.report.exports import shape_text
from opskip_compile.schedule.validation import format_layers

_SIGNS = dict(zip(STATUSES, " ~>+-", strict=True))
_STYLES = {"kept": "dim", "changed": "yellow", "rewired": "blue", "added": "green", "removed": "red"}
_STATES = {"skip": "green", "missed": "red"}


def plain(view: RenderableType, width: int) -> str:
    """The view as text without colours, the same on every terminal."""
    console = Console(width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(view)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def diff_view(diff: DiffData) -> RenderableType:
    """Summary, one line for each run of layers that are alike, and what stayed full although it should not."""
    return Stack(*_summary(diff), _table(diff), *_problems(diff))


def group_view(group: LineGroup) -> RenderableType:
    """The code of one operator before and after, line by line."""
    facts = group.facts
    title = group.title + (f": {facts['state']}" if facts else "")
    if facts and facts["rows_before"] is not None and facts["state"] == "skip":
        title += f", {facts['rows_before']} -> {facts['rows_after']} rows"
    if facts and facts["flops_before"]:
        title += f", {flops_text(facts['flops_before'])} -> {flops_text(facts['flops_after'])}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("", width=1)
    table.add_column("before", ratio=1, overflow="fold")
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("after", ratio=1, overflow="fold")
    table.add_column("shape", justify="right", no_wrap=True)
    for line in group.lines:
        table.add_row(*_cells(line), style=_STYLES[line.status])
    legend = "  ".join(f"{sign} {name}" for name, sign in _SIGNS.items() if sign.strip())
    table.caption, table.caption_justify, table.caption_style = legend, "left", "dim"
    return table


def flops_text(count: int | None, unit: str = "FLOPs") -> str:
    """Four digits, a prefix and the unit, or a dash."""
    if count is None:
        return "-"
    size, letter = prefix(count)
    return f"{count / size:.4g} {letter}{unit}" if letter else f"{count} {unit}".rstrip()


def _cells(line: DiffLine) -> Iterator[RenderableType]:
    yield Text(_SIGNS[line.status])
    for record in (line.before, line.after):
        yield Text("" if record is None else record.code)
        yield Text(shape_text(record))


def _summary(diff: DiffData) -> list[Text]:
    summary, counts = diff.facts["summary"], diff.counts
    nodes = f"{summary['nodes_before']} -> {summary['nodes_after']} nodes"
    if summary["reason"]:
        return [Text(f"nothing was rewritten: {summary['reason']} ({nodes})")]
    changes = ", ".join(f"{count} {status}" for status, count in counts.items())
    lines = [
        Text(f"schedule {summary['schedule']} ({summary['schedule_origin']}), rows from {summary['row_source']}"),
        Text(f"{nodes}: {changes}"),
    ]
    prompt, before, after = summary["prompt"], summary["flops_before"], summary["flops_after"]
    if prompt is not None:
        visual = ", ".join(map(str, prompt["visual"]))
        lines.append(Text(f"this prompt: batch of {prompt['batch']}, {prompt['rows']} rows, visual: {visual}"))
    if before and after is not None:
        lines.append(Text(f"{flops_text(before)} -> {flops_text(after)}, {1 - after / before:.1%} fewer"))
    return lines


def _table(diff: DiffData) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layers", overflow="fold", min_width=8)
    for name in ("operator", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "FLOPs"):
        table.add_column(name, justify="right", min_width=7)
    for name in STATUSES:
        table.add_column(name, justify="right", no_wrap=True)
    for layers, group in _runs(diff):
        facts, named = group.facts, format_layers(tuple(layers)).replace(",", ", ") if layers else group.title
        state = Text(facts["state"], style=_STATES.get(facts["state"], "")) if facts else Text("")
        counts = [str(count or "") for count in group.counts.values()]
        table.add_row(named, group.kind or "", state, *_sizes(facts), *counts)
    return table


def _sizes(facts: Any) -> tuple[str, str]:
    if not facts:
        return "", ""
    rows = "" if facts["rows_before"] is None else str(facts["rows_before"])
    if facts["state"] == "skip" and rows:
        rows += f" -> {facts['rows_after']}"
    before, after = (flops_text(facts[name], "") for name in ("flops_before", "flops_after"))
    return rows, before if after in (before, "-") else f"{before} -> {after}"


def _runs(diff: DiffData) -> list[tuple[list[int], LineGroup]]:
    """Groups that say the same, with their layers; the first of them speaks for all."""
    found: dict[tuple[Any, ...], tuple[list[int], LineGroup]] = {}
    for group in diff.groups:
        facts = group.facts
        sizes = tuple(facts.get(name) for name in ("state", "rows", "rows_after", "flops_before", "flops_after"))
        key = (group.kind or group.name, *sizes, *group.counts.values())
        layers, _ = found.setdefault(key, ([], group))
        if group.layer is not None:
            layers.append(group.layer)
    return list(found.values())


def _problems(diff: DiffData) -> list[Text]:
    lines = []
    for miss in diff.facts["misses"]:
        place = " ".join(filter(None, (miss["node"], miss["source"]))) or "-"
        lines.append(Text(f"stays full: {miss['layer']}.{miss['kind']} at {place}: {miss['reason']}", style="red"))
        if miss["nearest"]:
            lines.append(Text(f"  nearest match: {miss['nearest']}"))
    for stop in diff.facts["stops"]:
        place = f"{stop['operator'] or 'outside of the operators'}, {stop['source']}"
        lines.append(Text(f"computed in full: {stop['node']} ({stop['operation']}; {place}): {stop['reason']}"))
    return lines
