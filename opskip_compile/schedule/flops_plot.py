"""What a schedule saves over image sizes: the FLOPs of ten prompts, as figures and as a plot.

Needs matplotlib for the plot alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from opskip_compile.output.plots import write_figure
from opskip_compile.schedule.flops import FlopsReport, count_flops

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = (64, 144, 256, 576, 1024, 2048, 2880, 4096, 8192, 16384)
INCHES, DPI = (8.0, 7.0), 150


class _CurveStyle(NamedTuple):
    name: str
    color: str
    line: str


# Okabe and Ito's colours, told apart by every kind of colour vision; line styles say the same once more
_BLUE = "#0072B2"
_STYLES = {"ffn": _CurveStyle("FFN", "#D55E00", "--"), "attention": _CurveStyle("attention", "#009E73", ":")}


def sweep(geometry: Any, text_tokens: int, schedule: Any) -> tuple[FlopsReport, ...]:
    """`count_flops` at every size of `SIZES`, each with ``text_tokens`` rows of text."""
    return tuple(
        count_flops(geometry, visual_tokens=size, text_tokens=text_tokens, schedule=schedule) for size in SIZES
    )


def save_plot(reports: Sequence[FlopsReport], title: str, target: Path) -> None:
    """Write the plot of a `sweep` to ``target``, whole or not at all; a PNG is 1200 by 1050 pixels.

    Raises:
        OpSkipError: as `check_plot`, or the file can't be written.
    """
    write_figure(lambda: figure(reports, title), target)


def figure(reports: Sequence[FlopsReport], title: str) -> Figure:
    """Two panels over the visual rows: the share of the FLOPs that is cut, by operator, and the ideal speed-up.

    Every curve has its name at its right end, and as ``gid`` one of ``cut``, ``cut-ffn``, ``cut-attention`` and
    ``speedup``. The curves of the two operators are drawn where both save something.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    drawing.suptitle(title, fontsize=13, fontweight="bold", x=0.02, ha="left", parse_math=False)
    cut, speed = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    rows = [report.visual_tokens for report in reports]
    _draw_cut(cut, reports, rows)
    _draw_speedup(speed, [report.ideal_speedup for report in reports], rows)
    speed.set_xlabel(f"visual rows of the prompt (log scale), with {reports[0].text_tokens} text rows")
    speed.set_xscale("log", base=2)
    speed.set_xticks(rows, [str(row) for row in rows], size=8.5)
    speed.set_xticks([], minor=True)
    speed.set_xlim(rows[0] / 1.5, rows[-1] * 2.6)
    for axes in (cut, speed):
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return drawing


def _draw_cut(axes: Axes, reports: Sequence[FlopsReport], rows: Sequence[int]) -> None:
    total = [100 * report.cut for report in reports]
    parts = {name: [100 * _saved(report, name) for report in reports] for name in _STYLES}
    saving = [name for name in _STYLES if any(parts[name])]
    axes.plot(rows, total, color=_BLUE, lw=2.4, marker="o", ms=4.5, gid="cut", clip_on=False, zorder=3)
    _values(axes, rows, [f"{value:.1f}" for value in total], total)
    ends = [(f"{_STYLES[saving[0]].name} only" if len(saving) == 1 else "total", total[-1], _BLUE)]
    for name in saving if len(saving) > 1 else ():
        style = _STYLES[name]
        axes.plot(rows, parts[name], color=style.color, lw=1.8, ls=style.line, gid=f"cut-{name}")
        ends.append((style.name, parts[name][-1], style.color))
    top = max(10.0, max(total) * 1.15)
    axes.set_ylim(0, top)
    axes.set_ylabel("FLOPs cut (% of dense)")
    _names(axes, rows[-1], ends, gap=top * 0.065)


def _draw_speedup(axes: Axes, gains: Sequence[float], rows: Sequence[int]) -> None:
    axes.plot((rows[0], rows[-1]), (1, 1), color="0.35", lw=1.2)
    axes.plot(rows, gains, color=_BLUE, lw=2.4, marker="o", ms=4.5, gid="speedup", zorder=3)
    _values(axes, rows, [f"{value:.2f}x" for value in gains], gains)
    high = max(gains)
    top = high + max(0.25, (high - 1) * 0.3)
    axes.set_ylim(0.9, top)
    axes.set_ylabel("ideal speed-up (dense = 1)")
    _names(axes, rows[-1], [("dense", 1, "0.35"), ("skipped", high, _BLUE)], gap=(top - 0.9) * 0.1)


def _saved(report: FlopsReport, operator: str) -> float:
    """Share of the decoder's dense FLOPs that skipping this kind of operator saves."""
    return sum(item.dense - item.skipped for item in report.operators if item.operator == operator) / report.dense


def _values(axes: Axes, rows: Sequence[int], texts: Sequence[str], heights: Sequence[float]) -> None:
    """Figures above the points and to their left, where a rising curve leaves room."""
    for row, text, height in zip(rows, texts, heights, strict=True):
        axes.annotate(
            text, (row, height), (5, 5), textcoords="offset points", ha="right", va="bottom", size=8, color=_BLUE
        )


def _names(axes: Axes, row: int, ends: Sequence[tuple[str, float, str]], gap: float) -> None:
    """The curves' names at their right ends, moved apart where they would touch."""
    below = float("-inf")
    for text, height, color in sorted(ends, key=lambda end: end[1]):
        below = max(height, below + gap, axes.get_ylim()[0] + gap / 2)
        axes.text(row * 1.15, below, text, color=color, va="center", fontweight="bold")
