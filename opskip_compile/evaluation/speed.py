"""Prefill time of the runs on the model's own decoder, by the harness of `timing.prefill`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from opskip_compile.attachment.decoder import decoder_of
from opskip_compile.calibration.batches import PromptRows
from opskip_compile.errors import OpSkipError
from opskip_compile.evaluation.methods import DENSE
from opskip_compile.evaluation.runs import EvaluationRun
from opskip_compile.output.progress import Step
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.modalities import VISUAL
from opskip_compile.timing.decoders import Decoder
from opskip_compile.timing.prefill import PrefillTimes, run_prefill


@dataclass(frozen=True)
class Speed:
    """Prefill of the compiled decoder against the dense one under plain Inductor.

    Attributes:
        measured: median over the rounds of the ratio of times; more than 1 is faster.
        low, high: the smallest and the largest ratio.
        ideal: the ratio of FLOPs.
    """

    measured: float
    low: float
    high: float
    ideal: float


@dataclass(frozen=True)
class _Loaded(Decoder):
    """A decoder that is there already, with its weights."""

    model: nn.Module

    def build(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
        return self.model


def speeds(
    model: nn.Module,
    runs: Sequence[EvaluationRun],
    prompts: Sequence[PromptRows],
    modalities: tuple[str, ...],
    rounds: int,
    lower: str,
    step: Step,
) -> dict[str, Speed]:
    """By `EvaluationRun.spec`, at the median numbers of visual and of other rows; batch 1.

    Args:
        model: dense and eager.
        modalities: whose rows the runs leave out.
        lower: as in `Settings`; times of ``"eager"`` say nothing about Inductor.

    Raises:
        OpSkipError: no decoder whose sizes are known, or one that the harness can't run.
    """
    decoder = decoder_of(model, modalities)
    if decoder is None:
        raise OpSkipError(f"{type(model).__name__} has no text decoder")
    first = next(decoder.parameters())
    loaded = _Loaded(type(decoder).__name__, "", Geometry.from_config(model), decoder)
    timed = [c for c in runs if c.method != DENSE and not c.seed and (c.schedule is None or c.dropping is None)]
    # The level of a prompt of random numbers would say nothing about the time of real ones.
    leaving_out = {c.spec: c.schedule for c in timed if c.schedule is not None and not c.schedule.levels}
    # The harness says itself which rows are meant.
    schedules: Any = {spec: replace(schedule, modalities=VISUAL) for spec, schedule in leaving_out.items()}
    droppings: Any = {c.spec: c.dropping for c in timed if c.dropping is not None}
    visual = round(statistics.median(p.visual for p in prompts))
    text = round(statistics.median(p.all - p.visual for p in prompts))
    try:
        rows = run_prefill(
            loaded,
            schedules,
            droppings,
            visual=visual,
            text=text,
            rounds=rounds,
            device=str(first.device),
            dtype=first.dtype,
            lower=lower,
            step=step,
        )
    except OpSkipError:
        raise
    except Exception as error:  # the model's own code, which the harness calls in a way of its own
        text_of = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise OpSkipError(f"its decoder can't be timed: {text_of}") from error
    return {row.name: _speed(row) for row in rows}


def _speed(row: PrefillTimes) -> Speed:
    return Speed(row.measured, min(row.ratios), max(row.ratios), row.ideal)
