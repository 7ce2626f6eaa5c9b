"""Plots of an evaluation. Needs matplotlib; colours are Okabe and Ito's, as in all our plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from opskip_compile.evaluation.data import EvaluationData, MethodOutcome, is_dense
from opskip_compile.evaluation.result_tables import title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _MethodStyle(NamedTuple):
    label: str
    color: str
    marker: str
    line: str


_STYLES = {
    "per-prompt": _MethodStyle("a level for every prompt, calibrated", "#0072B2", "*", "-"),
    "operators+keep": _MethodStyle("operators with critical rows, calibrated", "#0072B2", "o", "--"),
    "operators": _MethodStyle("operators, calibrated", "#0072B2", "h", ":"),
    "dop": _MethodStyle("operators from a depth on, DOP-like", "#F0E442", "p", "--"),
    "layers": _MethodStyle("whole layers, calibrated", "#D55E00", "s", "--"),
    "shortv": _MethodStyle("whole layers by ShortV's score", "#E69F00", "D", "--"),
    "fastv": _MethodStyle("token dropping, FastV-like", "#009E73", "v", "-."),
    "vtw": _MethodStyle("token dropping, VTW-like", "#56B4E9", "P", "-."),
    "divprune": _MethodStyle("token pruning before the decoder, DivPrune-like", "#009E73", "<", ":"),
    "pruned+operators": _MethodStyle("tokens pruned, then operators", "#882255", "X", ":"),
    "pruned+operators+keep": _MethodStyle("tokens pruned, then operators with critical rows", "#882255", "d", "--"),
    "random-tokens": _MethodStyle("random tokens", "0.3", "+", "-."),
    "late": _MethodStyle("last layers", "#CC79A7", "^", ":"),
    "random": _MethodStyle("random operators", "0.5", "x", ":"),
}
_SCHEDULE = ("#000000", "*")


def figure(result: EvaluationData) -> Figure:
    """Retained share against the cut; with several tasks, their accuracies at the cut in the middle below it."""
    from matplotlib.figure import Figure

    bars = _middle(result) if len(result.tasks) > 1 else []
    drawing = Figure(figsize=(9.0, 9.0 if bars else 5.0), dpi=150, layout="constrained")
    drawing.suptitle(title(result), fontsize=12, fontweight="bold", x=0.02, ha="left")
    if bars:
        above, below = drawing.subplots(2, 1, height_ratios=(1.5, 1))
        _draw_tasks(below, result, bars)
    else:
        above = drawing.subplots()
    _draw_retained(above, result)
    return drawing


def _draw_retained(axes: Axes, result: EvaluationData) -> None:
    axes.axhline(100, color="0.35", lw=1)
    ordered = {name: _STYLES[name] for name in reversed(_STYLES)}  # the first is drawn last, over the others
    for name, style in ordered.items():
        outcomes = [o for o in result.outcomes if o.method == name and o.retained is not None]
        if outcomes:
            _line(axes, outcomes, style)
    color, marker = _SCHEDULE
    for each in result.outcomes:
        if each.method in _STYLES or is_dense(each) or each.retained is None:
            continue
        axes.plot(100 * each.cut, 100 * each.retained, ls="", color=color, marker=marker, ms=10, gid=each.method)
        axes.annotate(each.method, (100 * each.cut, 100 * each.retained), (6, -11), textcoords="offset points", size=8)
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


def _line(axes: Axes, outcomes: Sequence[MethodOutcome], style: _MethodStyle) -> None:
    points = sorted(outcomes, key=lambda o: o.cut)
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
        lw=1.8 if style is _STYLES["per-prompt"] else 1.3,
        elinewidth=0.8,
        capsize=2,
        label=style.label,
        gid=outcomes[0].method,
    )


def _middle(result: EvaluationData) -> list[MethodOutcome]:
    """The dense model and what was asked for the middle one of the cuts."""
    cuts = sorted({o.asked for o in result.outcomes if o.asked is not None})
    if not cuts:
        return list(result.outcomes)
    return [o for o in result.outcomes if is_dense(o) or o.asked == cuts[(len(cuts) - 1) // 2]]


def _draw_tasks(axes: Axes, result: EvaluationData, shown: Sequence[MethodOutcome]) -> None:
    width = 0.85 / len(shown)
    for k, outcome in enumerate(shown):
        style = _STYLES.get(outcome.method)
        color = "0.25" if is_dense(outcome) else _SCHEDULE[0] if style is None else style.color
        places = [i + (k - (len(shown) - 1) / 2) * width for i in range(len(result.tasks))]
        heights = [100 * outcome.by_task[task] for task in result.tasks]
        axes.bar(places, heights, width * 0.92, color=color, gid=f"tasks-{outcome.method}", label=outcome.method)
    asked = next((o.asked for o in shown if o.asked is not None), None)
    axes.set_title(
        "Accuracy by task" + ("" if asked is None else f", methods asked to cut {asked:.1%}"), fontsize=10, loc="left"
    )
    axes.set_xticks(range(len(result.tasks)), list(result.tasks), size=8)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, ncols=len(shown), loc="upper center", bbox_to_anchor=(0.5, -0.12))
