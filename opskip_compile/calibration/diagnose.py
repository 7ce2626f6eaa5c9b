"""`diagnose`: per layer, how large the visual update is and how little or much the answer notices it.

The observation behind the method (arXiv 2606.31903): late layers go on changing the visual rows, and the answer rows
hardly see it. This measures it on any model and prompts.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from opskip_compile.calibration import processes
from opskip_compile.calibration.divergence_meter import KEPT_BYTES, DivergenceMeter
from opskip_compile.calibration.effects import PARTS, SILENT, Effect, LayerEffect
from opskip_compile.calibration.fingerprint import fingerprint
from opskip_compile.calibration.journal import Journal
from opskip_compile.calibration.operator_sets import Skipped, skipping
from opskip_compile.calibration.plots import diagnosis_figure
from opskip_compile.calibration.preparation import SampleSource, as_samples, dense
from opskip_compile.calibration.scores import update_sizes
from opskip_compile.output.plots import write_figure
from opskip_compile.output.progress import Step
from opskip_compile.schedule.left_out import Rows
from opskip_compile.schedule.modalities import VISUAL

if TYPE_CHECKING:
    from rich.table import Table


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
        write_figure(lambda: diagnosis_figure(self.title, self.rows), Path(path))

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
    samples: SampleSource,
    *,
    processor: Any = None,
    rows: Rows = "visual",
    modalities: Sequence[str] | str = VISUAL,
    batch: int = 1,
    answer_tokens: int = 16,
    kept_bytes: int = KEPT_BYTES,
    step: Step = lambda what, done, total: None,
) -> Diagnosis:
    """Measure each layer's visual update and its effect on the answer.

    Args: as `opskip_compile.calibrate`, under ``torch.distributed``, too.

    Raises:
        OptionError, OpSkipError: as there.
    """
    with processes.Together(), dense(model):
        checked = as_samples(model, samples, processor, rows, batch, answer_tokens, modalities)
        checked.check(step)
        processes.check_alike({"model": fingerprint(model), "data": checked.digest, "options": (rows, answer_tokens)})
        journal = Journal(None, {})
        checked.answer(journal, step)
        meter = DivergenceMeter(model, checked, journal, step, kept_bytes)
        items = range(len(checked.items))
        sizes = update_sizes(meter, items)
        sets = [
            skipping((layer, kind) for kind in kinds) for layer in range(meter.num_layers) for kinds in PARTS.values()
        ]
        return Diagnosis(
            f"{type(model).__name__}: visual updates and the answer", checked.count, _rows(meter, items, sets, sizes)
        )


def _rows(
    meter: DivergenceMeter, items: Sequence[int], sets: Sequence[Skipped], sizes: Sequence[Mapping[str, float]]
) -> tuple[LayerEffect, ...]:
    meter.doing = "skipping each layer and operator alone"
    measured = dict(zip(sets, meter.measure(sets, items), strict=True))
    by_layer = []
    for layer, size in enumerate(sizes):
        effects = {}
        for part, kinds in PARTS.items():
            alone = measured[skipping((layer, kind) for kind in kinds)]
            effects[part] = Effect(size[part], alone.mean, statistics.fmean(alone.turned))
        by_layer.append(effects)
    largest = max(effects["layer"].divergence for effects in by_layer)
    return tuple(
        LayerEffect(layer, effects, effects["layer"].divergence <= SILENT * largest)
        for layer, effects in enumerate(by_layer)
    )
