"""Plots of an evaluation. Needs matplotlib; colours are Okabe and Ito's, as in all our plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from opskip_compile.evaluation.result import Evaluation, Outcome, is_dense
from opskip_compile.evaluation.show import title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _Style(NamedTuple):
    label: str
    color: str
    marker: str
    line: str


_STYLES = {
    "operators": _Style("operators, calibrated", "#0072B2", "o", "-"),
    "layers": _Style("whole layers, calibrated", "#D55E00", "s", "--"),
    "shortv": _Style("whole layers by ShortV's score", "#E69F00", "D", "--"),
    "fastv": _Style("token dropping, FastV-like", "#009E73", "v", "-."),
    "vtw": _Style("token dropping, VTW-like", "#56B4E9", "P", "-."),
    "late": _Style("last layers", "#CC79A7", "^", ":"),
    "random": _Style("random operators", "0.5", "x", ":"),
}
_GIVEN = ("#000000", "*")


def figure(result: Evaluation) -> Figure:
    """Retained share against the cut; with several tasks, their accuracies at the cut in the middle below it."""
    from matplotlib.figure import Figure

    bars = _middle(result) if len(result.tasks) > 1 else []
    made = Figure(figsize=(9.0, 9.0 if bars else 5.0), dpi=150, layout="constrained")
    made.suptitle(title(result), fontsize=12, fontweight="bold", x=0.02, ha="left")
    if bars:
        above, below = made.subplots(2, 1, height_ratios=(1.5, 1))
        _draw_tasks(below, result, bars)
    else:
        above = made.subplots()
    _draw_retained(above, result)
    return made


def _draw_retained(axes: Axes, result: Evaluation) -> None:
    axes.axhline(100, color="0.35", lw=1)
    ordered = {name: _STYLES[name] for name in reversed(_STYLES)}  # ours is drawn last, over the others
    for name, style in ordered.items():
        found = [o for o in result.outcomes if o.method == name and o.retained is not None]
        if found:
            _line(axes, found, style)
    given = [o for o in result.outcomes if o.method not in _STYLES and not is_dense(o) and o.retained is not None]
    for each in given:
        color, marker = _GIVEN
        axes.plot(100 * each.cut, 100 * (each.retained or 0), ls="", color=color, marker=marker, ms=10, gid=each.method)
        axes.annotate(
            each.method, (100 * each.cut, 100 * (each.retained or 0)), (6, -11), textcoords="offset points", size=8
        )
    axes.set_xlabel("FLOPs cut (% of the dense decoder's prefill)")
    axes.set_ylabel("retained accuracy (% of dense)")
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles[::-1],
            labels[::-1],
            fontsize=8,
            frameon=False,
            ncols=3,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.11 if len(result.tasks) == 1 else -0.14),
        )


def _line(axes: Axes, found: Sequence[Outcome], style: _Style) -> None:
    points = sorted(found, key=lambda o: o.cut)
    x, y = [100 * o.cut for o in points], [100 * (o.retained or 0) for o in points]
    bounds = [o.intervals.retained for o in points]
    low = [max(0.0, v - 100 * b.low) if b else 0.0 for v, b in zip(y, bounds, strict=True)]
    high = [max(0.0, 100 * b.high - v) if b else 0.0 for v, b in zip(y, bounds, strict=True)]
    axes.errorbar(
        x,
        y,
        yerr=(low, high),
        color=style.color,
        marker=style.marker,
        ls=style.line,
        ms=5,
        lw=1.8 if style is _STYLES["operators"] else 1.3,
        elinewidth=0.8,
        capsize=2,
        label=style.label,
        gid=found[0].method,
    )


def _middle(result: Evaluation) -> list[Outcome]:
    """The dense model and what was asked for the middle one of the cuts."""
    cuts = sorted({o.asked for o in result.outcomes if o.asked is not None})
    if not cuts:
        return list(result.outcomes)
    return [o for o in result.outcomes if is_dense(o) or o.asked == cuts[(len(cuts) - 1) // 2]]


def _draw_tasks(axes: Axes, result: Evaluation, shown: Sequence[Outcome]) -> None:
    width = 0.85 / len(shown)
    for k, found in enumerate(shown):
        style = _STYLES.get(found.method)
        color = "0.25" if is_dense(found) else _GIVEN[0] if style is None else style.color
        places = [i + (k - (len(shown) - 1) / 2) * width for i in range(len(result.tasks))]
        heights = [100 * found.by_task[task] for task in result.tasks]
        axes.bar(places, heights, width * 0.92, color=color, gid=f"tasks-{found.method}", label=found.method)
    asked = next((o.asked for o in shown if o.asked is not None), None)
    axes.set_title(
        "Accuracy by task" + ("" if asked is None else f", methods asked to cut {asked:.1%}"), fontsize=10, loc="left"
    )
    axes.set_xticks(range(len(result.tasks)), list(result.tasks), size=8)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, ncols=len(shown), loc="upper center", bbox_to_anchor=(0.5, -0.12))
