"""Compile times as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from opskip_compile.bench.compile_time import DENSE, PARTS, Start

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 40  # characters of what a table calls a schedule
_COLORS = dict(zip(PARTS, ("#BBBBBB", "#56B4E9", "#D55E00", "#009E73", "#CC79A7"), strict=True))


def to_dict(start: Start, dense: Start) -> dict[str, Any]:
    """Figures for JSON; ``to_dense`` is the share of the dense model's time, with and without the probe."""
    return {
        "contender": start.contender,
        "layers": start.layers,
        "cache": "warm" if start.warm else "cold",
        "seconds": round(start.seconds, 3),
        "to_dense": round(start.seconds / dense.seconds, 3),
        "to_dense_without_probe": round(start.own_seconds / dense.own_seconds, 3),
        "parts": {name: round(value, 3) for name, value in start.parts.items()},
        "passes": {name: round(value, 4) for name, value in start.passes.items()},
        "passes_share": round(start.parts["passes"] / start.seconds, 4),
        "nodes": start.nodes,
        "kernels": start.kernels,
    }


def with_dense(starts: Sequence[Start]) -> list[tuple[Start, Start]]:
    """Each figure with the dense one of the same depth and cache."""
    dense: Mapping[tuple[int, bool], Start] = {(s.layers, s.warm): s for s in starts if s.contender == DENSE}
    return [(start, dense[start.layers, start.warm]) for start in starts]


def table(starts: Sequence[Start], title: str) -> Table:
    """One row for each depth, cache and contender."""
    view = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("layers", "cache", "contender"):
        view.add_column(column, no_wrap=True)
    for column in (*PARTS, "all", "to dense", "no probe", "kernels"):
        view.add_column(column, justify="right", no_wrap=True)
    for start, dense in with_dense(starts):
        parts = (f"{start.parts[name]:.2f}" for name in PARTS)
        ratios = (start.seconds / dense.seconds, start.own_seconds / dense.own_seconds)
        cache = "warm" if start.warm else "cold"
        shares = (f"{ratio:.2f}x" for ratio in ratios)
        name = shorten(start.contender, LONGEST, placeholder=" …")
        view.add_row(str(start.layers), cache, name, *parts, f"{start.seconds:.2f}", *shares, str(start.kernels))
    view.caption = "Seconds. no probe: to dense, without the probe of the C++ compiler, which no model needs twice."
    view.caption_justify = "left"
    return view


def figure(starts: Sequence[Start], title: str) -> Figure:
    """Stacked bars, a panel for cold and one for warm caches."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 7), dpi=150, layout="constrained")
    drawing.suptitle(title, fontsize=12, x=0.02, ha="left", parse_math=False)
    for axes, warm in zip(drawing.subplots(2, 1), (False, True), strict=True):
        chosen = [start for start in starts if start.warm == warm]
        names = [f"{s.layers} layers\n{DENSE if s.contender == DENSE else 'opskip'}" for s in chosen]
        below = [0.0] * len(chosen)
        for part in PARTS:
            heights = [start.parts[part] for start in chosen]
            axes.bar(names, heights, 0.6, bottom=below, color=_COLORS[part], label=part)
            below = [a + b for a, b in zip(below, heights, strict=True)]
        for name, height in zip(names, below, strict=True):
            axes.annotate(f"{height:.1f}", (name, height), (0, 3), textcoords="offset points", ha="center", size=8)
        axes.set_title(f"{'warm' if warm else 'cold'} caches", fontsize=10, loc="left")
        axes.set_ylabel("seconds of compiling")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
    drawing.legend(*drawing.axes[0].get_legend_handles_labels(), frameon=False, ncols=5, loc="outside lower center")
    return drawing
