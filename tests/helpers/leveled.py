"""Schedules with levels and a chooser of random weights."""

from __future__ import annotations

import torch

import opskip_compile as opskip
from opskip_compile.schedule.chooser import BUCKETS, Chooser, deepest


def leveled(*specs: str, threshold: float = 0.0, seed: int = 0, num_layers: int | None = 4) -> opskip.Schedule:
    """One level for each spec text; the threshold decides how deep prompts go: -1000 is the first level for all."""
    drawn = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(specs), 2 * BUCKETS, generator=drawn, dtype=torch.float64)
    levels = tuple(opskip.Schedule.from_spec(spec) for spec in specs)
    chooser = Chooser(
        tuple(map(tuple, weights.tolist())), (0.0,) * len(specs), deepest(len(specs), threshold), threshold
    )
    return opskip.Schedule(num_layers=num_layers, levels=levels, chooser=chooser)
