"""Prefill figures as a table and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from opskip_compile.timing.prefill import INDUCTOR, ONEDNN, PrefillTimes
from opskip_compile.timing.time_by_kind import KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = {"schedule": ("o", "#0072B2", "opskip"), "dropping": ("s", "#D55E00", "token dropping")}


@dataclass(frozen=True)
class Case:
    """One prompt of one decoder, and what was measured."""

    title: str
    layers: int
    full_layers: int
    visual: int
    text: int
    rows: tuple[PrefillTimes, ...]

    @property
    def name(self) -> str:
        """A line over the table."""
        return f"{self.title}, {self.layers} of {self.full_layers} layers, {self.visual} visual + {self.text} text rows"

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON."""
        return {
            "model": self.title,
            "layers": self.layers,
            "full_layers": self.full_layers,
            "visual": self.visual,
            "text": self.text,
            "results": [row.to_dict() for row in self.rows],
        }


def table(case: Case) -> Table:
    """One row per contender; speed-ups against plain Inductor of the dense model."""
    view = Table(title=case.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    view.add_column("contender", no_wrap=True)
    for column in ("ms", "cut", "ideal", "measured", "from - to", "realised", "to fastest", "peak"):
        view.add_column(column, justify="right", no_wrap=True)
    for row in case.rows:
        low, high = min(row.ratios), max(row.ratios)
        view.add_row(
            row.name,
            f"{statistics.median(row.seconds) * 1e3:.1f}",
            f"{row.cut:.1%}",
            f"{row.ideal:.2f}x",
            f"{row.measured:.2f}x",
            f"{low:.2f}-{high:.2f}",
            f"{row.measured / row.ideal:.0%}",
            f"{row.to_fastest:.2f}x ({row.to_fastest / row.ideal:.0%})",
            f"{row.peak / row.dense_peak:.2f}x",
        )
    view.caption = "cut: of FLOPs. ideal, measured, peak memory: against plain Inductor. realised: measured / ideal."
    view.caption += f" to fastest: against {case.rows[0].fastest}, the fastest dense run."
    view.caption_justify = "left"
    return view


def profile_table(case: Case) -> Table:
    """What the time of one call goes to, in milliseconds, and as a share of plain Inductor's whole call."""
    view = Table(title=f"{case.name}: one call", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    view.add_column("contender", no_wrap=True)
    for column in (*KINDS, "all"):
        view.add_column(column, justify="right", no_wrap=True)
    whole = sum(next(row for row in case.rows if row.name == INDUCTOR).by_kind.values())
    for row in case.rows:
        seconds = (*(row.by_kind[kind] for kind in KINDS), sum(row.by_kind.values()))
        view.add_row(row.name, *(f"{each * 1e3:.1f} ms ({each / whole:.1%})" for each in seconds))
    view.caption = "products: of matrices. other: generated kernels and Python. Shares: of plain Inductor's call."
    view.caption_justify = "left"
    return view


def figure(cases: Sequence[Case], where: str) -> Figure:
    """Measured speed-up over the share of FLOPs that is cut, a panel for each case, with the line ``1 / (1 - cut)``.

    A second line begins at the dense decoder in oneDNN, if that was measured.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7.5, 5.2 * len(cases)), dpi=150, layout="constrained")
    drawing.suptitle(
        f"Prefill speed-up against plain Inductor, {where}", fontsize=12, x=0.02, ha="left", parse_math=False
    )
    for axes, case in zip(drawing.subplots(len(cases), 1, squeeze=False)[:, 0], cases, strict=True):
        rows = [row for row in case.rows if row.kind in _MARKS]
        most = max([row.cut for row in rows], default=0.5)
        cuts = [most * i / 100 for i in range(101)]
        dense = [("ideal", 1.0, "-", "0.4")]
        dense += [("ideal, all in oneDNN", row.measured, "--", "0.6") for row in case.rows if row.name == ONEDNN]
        for label, start, line, gray in dense:
            gains = [start / (1 - cut) for cut in cuts]
            axes.plot([100 * cut for cut in cuts], gains, line, color=gray, label=label, gid=label)
        for kind, (mark, color, label) in _MARKS.items():
            chosen = [row for row in rows if row.kind == kind]
            if not chosen:
                continue
            middle = [row.measured for row in chosen]
            below = [row.measured - min(row.ratios) for row in chosen]
            above = [max(row.ratios) - row.measured for row in chosen]
            axes.errorbar(
                [100 * row.cut for row in chosen],
                middle,
                yerr=(below, above),
                fmt=mark,
                color=color,
                label=label,
                capsize=3,
                gid=kind,
            )
            for row in chosen:
                at = (100 * row.cut, row.measured)
                under = kind == "dropping"
                where_to = (4, -12) if under else (-4, 6)
                axes.annotate(
                    row.name,
                    at,
                    where_to,
                    textcoords="offset points",
                    size=8,
                    color=color,
                    rotation=-30 if under else 30,
                    rotation_mode="anchor",
                    ha="left",
                )
        axes.set_title(case.name, fontsize=10, loc="left", parse_math=False)
        axes.set_xlabel("FLOPs cut (% of dense)")
        axes.set_ylabel("speed-up (dense Inductor = 1)")
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.14, y=0.16)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", frameon=False)
    return drawing
