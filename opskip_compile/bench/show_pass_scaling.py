"""Times of the passes and of the matchers against depth, as tables and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from opskip_compile.bench.pass_scaling import Depth

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_dict(depth: Depth) -> dict[str, Any]:
    """Figures for JSON, in milliseconds."""
    return {
        "layers": depth.layers,
        "nodes": depth.nodes,
        "nodes_after": depth.nodes_after,
        "milliseconds": round(depth.milliseconds, 1),
        "passes": {name: round(time, 2) for name, time in depth.passes.items()},
        "matchers": {
            name: {"milliseconds": round(each.milliseconds, 2), "found": each.found}
            for name, each in depth.matchers.items()
        },
    }


def table(depths: Sequence[Depth], title: str) -> Table:
    """One row for each depth."""
    names = list(depths[0].matchers)
    view = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("layers", "nodes", "after", "passes ms", "per layer", "slowest", *names):
        view.add_column(column, justify="right", no_wrap=column not in names)
    for depth in depths:
        slowest = max(depth.passes, key=lambda name: depth.passes[name])
        view.add_row(
            str(depth.layers),
            str(depth.nodes),
            str(depth.nodes_after),
            f"{depth.milliseconds:.0f}",
            f"{depth.milliseconds / depth.layers:.1f}",
            f"{slowest} {depth.passes[slowest]:.0f}",
            *(f"{each.milliseconds:.0f} ({each.found})" for each in depth.matchers.values()),
        )
    view.caption = "after: nodes handed to the compiler. Matchers: ms (operators found)."
    view.caption_justify = "left"
    return view


def figure(depths: Sequence[Depth], title: str) -> Figure:
    """Milliseconds over layers: the passes one upon the other, and the matchers."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(11, 4.5), dpi=150, layout="constrained")
    drawing.suptitle(title, fontsize=12, x=0.02, ha="left", parse_math=False)
    left, right = drawing.subplots(1, 2)
    layers = [depth.layers for depth in depths]
    names = sorted(depths[-1].passes, key=lambda name: -depths[-1].passes[name])
    stacks = [[depth.passes[name] for depth in depths] for name in names]
    left.stackplot(layers, stacks, labels=names, colors=colormaps["tab20"](range(len(names))))
    left.set_title("passes", fontsize=10, loc="left")
    left.legend(loc="upper left", frameon=False, fontsize=8)
    for name in depths[-1].matchers:
        right.plot(layers, [depth.matchers[name].milliseconds for depth in depths], "o-", label=name)
    right.set_title("finding the operators", fontsize=10, loc="left")
    if depths[-1].matchers:
        right.legend(loc="upper left", frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("layers")
        axes.set_ylabel("ms")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    return drawing
