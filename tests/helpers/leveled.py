"""Schedules with levels and a chooser of random weights, and the part of a schedule that a report says was skipped."""

from __future__ import annotations

from collections.abc import Iterable

import torch

import opskip_compile as opskip
from opskip_compile.schedule.chooser import BUCKETS, Chooser, deepest
from opskip_compile.schedule.left_out import LeftOut
from opskip_compile.schedule.rules import Rule


def leveled(*specs: str, threshold: float = 0.0, seed: int = 0, num_layers: int | None = 4) -> opskip.Schedule:
    """One level for each spec text; the threshold decides how deep prompts go: -1000 is the first level for all."""
    levels = tuple(opskip.Schedule.from_spec(spec) for spec in specs)
    return opskip.Schedule(num_layers=num_layers, levels=levels, chooser=chooser(len(specs), threshold, seed))


def chooser(levels: int, threshold: float, seed: int) -> Chooser:
    """Of weights from the normal distribution, for the deepest level below the threshold."""
    drawn = torch.Generator().manual_seed(seed)
    weights = torch.randn(levels, 2 * BUCKETS, generator=drawn, dtype=torch.float64)
    return Chooser(tuple(map(tuple, weights.tolist())), (0.0,) * levels, deepest(levels, threshold), threshold)


def skipping(operators: Iterable[tuple[int, str, str | None]], whole: opskip.Schedule) -> opskip.Schedule:
    """The schedule that skips just these ``(layer, kind, rows)`` of ``whole``, at the level that it chooses."""
    rows = [(layer, kind, LeftOut.parse(str(text))) for layer, kind, text in sorted(operators, key=str)]

    def rules(level: int) -> tuple[Rule, ...]:
        shares = [(layer, kind, r, r.shares[level] if r.shares else r.keep) for layer, kind, r in rows]
        return tuple(Rule((layer,), (kind,), r.rows, share) for layer, kind, r, share in shares if share < 1)

    if not any(r.shares for *_, r in rows):
        return opskip.Schedule(rules(0))
    levels = tuple(opskip.Schedule(rules(level)) for level in range(len(whole.levels)))
    return opskip.Schedule(levels=levels, chooser=whole.chooser)
