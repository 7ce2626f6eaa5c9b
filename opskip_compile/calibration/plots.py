"""Plots of a calibration and of a diagnosis. Needs matplotlib; colours are Okabe and Ito's, as in all our plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from opskip_compile.calibration.data import CalibrationData, Choice
from opskip_compile.calibration.effects import LayerEffect
from opskip_compile.calibration.operator_sets import OperatorId
from opskip_compile.schedule.rules import OPERATORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OURS, _EFFECT, _SIZE = "#0072B2", "#D55E00", "#009E73"
_CONTROLS = {
    "without shares": ("#E69F00", "D", "-."),
    "whole layers": ("#D55E00", "s", "--"),
    "late": ("#CC79A7", "^", ":"),
    "random": ("0.55", "x", ""),
}
_NOTHING = 1e-12  # nats: what is below it is drawn there


def figure(result: CalibrationData) -> Figure:
    """Two panels: the scores by layer and operator, those of the chosen schedule framed; and the joint divergence over
    the FLOPs cut, on held-out samples where there are any, with the controls."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.0, 8.0), dpi=150, layout="constrained")
    cut = f"{result.chosen.cut:.1%} fewer FLOPs"
    drawing.suptitle(f"Calibrated: {cut}", fontsize=13, fontweight="bold", x=0.02, ha="left")
    heat, front = drawing.subplots(2, 1, height_ratios=(1, 2.4))
    _draw_scores(drawing, heat, result)
    _draw_front(front, result)
    return drawing


def _draw_scores(drawing: Figure, axes: Axes, result: CalibrationData) -> None:
    from matplotlib.patches import Rectangle

    values = [
        [result.scores.values.get(OperatorId(layer, kind), 0.0) for layer in range(result.num_layers)]
        for kind in OPERATORS
    ]
    above = [value for row in values for value in row if value > _NOTHING]
    least = min(above, default=1.0) / 10  # what is nothing at all is drawn one step below the smallest score
    shown = [[math.log10(max(value, least)) for value in row] for row in values]
    image = axes.imshow(shown, aspect="auto", cmap="cividis", interpolation="nearest")
    kept = result.chosen.kept
    for op, share in kept.items():
        corner = (op.layer - 0.5, OPERATORS.index(op.kind) - 0.5 + share)
        axes.add_patch(Rectangle(corner, 1, 1 - share, fill=False, edgecolor="#D55E00", lw=2.2, clip_on=False))
    axes.set_yticks(range(len(OPERATORS)), ["attention", "FFN"])
    stride = max(1, result.num_layers // 24)
    axes.set_xticks(range(0, result.num_layers, stride))
    axes.set_xlabel("layer; framed: the part of the visual rows that the chosen schedule leaves out", fontsize=9)
    bar = drawing.colorbar(image, ax=axes, fraction=0.025, pad=0.01)
    bar.set_label(f"log10 of {result.scores.unit}", fontsize=8)
    axes.set_title(f"Score of each operator, by {result.scores.method}", fontsize=10, loc="left")


def _draw_front(axes: Axes, result: CalibrationData) -> None:
    for name, choices in result.controls.items():
        color, marker, line = _CONTROLS[name]
        axes.plot(*_points(choices), color=color, marker=marker, ls=line, ms=5, lw=1.3, label=name, gid=name)
    axes.plot(*_points(result.front), color=_OURS, marker="o", ms=4.5, lw=2, label="calibrated", gid="front")
    axes.plot(
        *_points([result.chosen]), ls="", marker="o", ms=12, mfc="none", mec=_OURS, mew=2, label="chosen", gid="chosen"
    )
    if result.levels is not None:
        taken = result.levels.judged
        point = [100 * taken.cut], [max(taken.quality.divergence, _NOTHING)]
        axes.plot(*point, ls="", marker="*", ms=14, color="#000000", label="a level for each prompt", gid="levels")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs cut (% of the dense decoder)")
    held = any(choice.heldout for choice in result.front)
    axes.set_ylabel(f"KL(dense || skipped), nats, {'held-out' if held else 'calibration'} samples")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    axes.set_title("What each cut does to the answers", fontsize=10, loc="left")


def _points(choices: Sequence[Choice]) -> tuple[list[float], list[float]]:
    """Percent cut and divergence of the choices that were measured; the dense model is left out."""
    points = [
        (100 * choice.cut, max(choice.judged.divergence, _NOTHING))
        for choice in choices
        if choice.judged is not None and choice.cut > 0
    ]
    return [x for x, _ in points], [y for _, y in points]


def diagnosis_figure(title: str, layers: Sequence[LayerEffect]) -> Figure:
    """Size of each layer's visual update, and beneath it what leaving it out does to the answer rows."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.0, 6.5), dpi=150, layout="constrained")
    drawing.suptitle(title, fontsize=13, fontweight="bold", x=0.02, ha="left", parse_math=False)
    size, effect = drawing.subplots(2, 1, sharex=True)
    numbers = [layer.layer for layer in layers]
    for name, marker, line in (("layer", "o", "-"), ("attention", "^", ":"), ("ffn", "s", "--")):
        effects = [layer.of(name) for layer in layers]
        label = "FFN" if name == "ffn" else name
        shown = {"marker": marker, "ls": line, "ms": 4.5, "label": label}
        size.plot(numbers, [part.update for part in effects], color=_SIZE, gid=f"update-{name}", **shown)
        effect.plot(
            numbers, [max(part.divergence, _NOTHING) for part in effects], color=_EFFECT, gid=f"effect-{name}", **shown
        )
    size.set_ylabel("|update| / |residual|,\nvisual rows")
    size.set_ylim(bottom=0)
    effect.set_yscale("log")
    effect.set_ylabel("KL(dense || skipped)\nat the answer, nats")
    effect.set_xlabel("layer (shaded: answer-silent)")
    for axes in (size, effect):
        for layer in layers:
            if layer.silent:
                axes.axvspan(layer.layer - 0.5, layer.layer + 0.5, color="0.92", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    stride = max(1, len(numbers) // 24)
    effect.set_xticks(numbers[::stride])
    return drawing
