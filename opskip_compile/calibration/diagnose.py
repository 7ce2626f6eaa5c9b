"""`diagnose`: per layer, how large the visual update is and how little or much the answer notices it.

The observation behind the method (arXiv 2606.31903): late layers go on changing the visual rows, and the answer rows
hardly see it. This measures it on a model and prompts of one's own.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from opskip_compile.api import decompiled
from opskip_compile.calibration.calibrate import evaluating, samples_of
from opskip_compile.calibration.journal import Journal
from opskip_compile.calibration.meter import KEPT_BYTES, Meter
from opskip_compile.calibration.operators import Operator, Skipped
from opskip_compile.calibration.samples import Samples
from opskip_compile.calibration.scores import update_sizes
from opskip_compile.output.progress import Step
from opskip_compile.schedule.schedule import OPERATORS, Rows

if TYPE_CHECKING:
    from rich.table import Table

SILENT = 0.01  # a layer below this share of the largest effect is called answer-silent
PARTS: Mapping[str, tuple[str, ...]] = {"layer": OPERATORS, "attention": ("attention",), "ffn": ("ffn",)}


@dataclass(frozen=True)
class Effect:
    """One operator of a layer, or both.

    Attributes:
        update: norm of the update by that of the residual stream before it, the mean over visual rows and samples.
        divergence: KL(dense || skipped) at the answer rows with it skipped alone, nats.
        turned: 1 - cosine of the residual stream behind the last layer at the answer rows.
    """

    update: float
    divergence: float
    turned: float


@dataclass(frozen=True)
class LayerEffect:
    """One layer; ``silent`` if leaving all of it out does less than `SILENT` of what the most important layer does."""

    layer: int
    effects: Mapping[str, Effect]
    silent: bool

    def of(self, part: str) -> Effect:
        """Of ``"layer"``, ``"attention"`` or ``"ffn"``."""
        return self.effects[part]


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` measured, layer by layer."""

    title: str
    samples: int
    rows: tuple[LayerEffect, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = [
            {"layer": row.layer, "silent": row.silent, **{name: asdict(e) for name, e in row.effects.items()}}
            for row in self.rows
        ]
        return {"title": self.title, "samples": self.samples, "silent_below": SILENT, "layers": rows}

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw it to a .png, .svg or .pdf.

        Raises:
            OptionError: another suffix. OpSkipError: matplotlib is missing, or the file can't be written.
        """
        from opskip_compile.calibration.plots import diagnosis_figure
        from opskip_compile.output.plots import write_figure

        write_figure(lambda: diagnosis_figure(self), Path(path))

    def table(self) -> Table:
        """One line a layer."""
        from rich.table import Table

        table = Table(title=f"{self.title}, {self.samples} samples", title_justify="left")
        for name in ("layer", "update", "KL", "1 - cosine", "attention KL", "FFN KL", ""):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for row in self.rows:
            whole = row.of("layer")
            table.add_row(
                str(row.layer),
                f"{whole.update:.3f}",
                f"{whole.divergence:.2e}",
                f"{whole.turned:.2e}",
                f"{row.of('attention').divergence:.2e}",
                f"{row.of('ffn').divergence:.2e}",
                "silent" if row.silent else "",
            )
        table.caption = (
            "update: its norm by that of the residual stream, visual rows; KL, cosine: at the answer rows, this layer "
            f"skipped alone; silent: KL below {SILENT:.0%} of the largest"
        )
        table.caption_justify = "left"
        return table


def diagnose(
    model: nn.Module,
    samples: Sequence[Mapping[str, Any]] | str | os.PathLike[str] | Samples,
    *,
    processor: Any = None,
    rows: Rows = "visual",
    batch: int = 1,
    answer_tokens: int = 16,
    kept_bytes: int = KEPT_BYTES,
    step: Step = lambda what, done, total: None,
) -> Diagnosis:
    """Measure each layer's visual update and its effect on the answer.

    Args: as `opskip_compile.calibrate`.

    Raises:
        OptionError, OpSkipError: as there.
    """
    with decompiled(model), evaluating(model), torch.no_grad():
        found = samples_of(model, samples, processor, rows, batch, answer_tokens)
        found.check(step)
        journal = Journal(None, {})
        found.answer(journal, step)
        meter = Meter(model, found, journal, step, kept_bytes)
        items = range(len(found.items))
        sizes = update_sizes(meter, items)
        sets = [
            frozenset(Operator(layer, kind) for kind in kinds)
            for layer in range(meter.num_layers)
            for kinds in PARTS.values()
        ]
        return Diagnosis(
            f"{type(model).__name__}: visual updates and the answer", found.count, _rows(meter, items, sets, sizes)
        )


def _rows(
    meter: Meter, items: Sequence[int], sets: Sequence[Skipped], sizes: Sequence[Mapping[str, float]]
) -> tuple[LayerEffect, ...]:
    meter.doing = "skipping each layer and operator alone"
    measured = dict(zip(sets, meter.measure(sets, items), strict=True))
    found = []
    for layer, size in enumerate(sizes):
        effects = {}
        for part, kinds in PARTS.items():
            one = measured[frozenset(Operator(layer, kind) for kind in kinds)]
            effects[part] = Effect(size[part], one.mean, statistics.fmean(one.turned))
        found.append(effects)
    largest = max(effects["layer"].divergence for effects in found)
    return tuple(
        LayerEffect(layer, effects, effects["layer"].divergence <= SILENT * largest)
        for layer, effects in enumerate(found)
    )
