"""A level for every prompt: several sets from shallow to deep, and a chooser that guesses what each does to a prompt.

The guess is a ridge regression of the logarithm of the divergence on what is known before the first layer, in closed
form. Each level is worth what it saves at one price, which is set by guesses for prompts that were left out of the fit,
so that the mean cut holds for new ones.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from opskip_compile.calibration.costs import Costs
from opskip_compile.calibration.data import LevelChoice, Quality, quality_of
from opskip_compile.calibration.divergence_meter import DivergenceMeter, Measured
from opskip_compile.calibration.operator_sets import NOTHING, Skipped
from opskip_compile.calibration.replay import Replay, first_of
from opskip_compile.calibration.search import Point, pareto
from opskip_compile.passes.levels import features
from opskip_compile.schedule.chooser import Chooser, deepest

LEAST = 1e-7  # nats: divergences below it are all the same to a chooser
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # times the number of prompts; features have variance 1
DIGITS = 6  # of a number in a schedule file


def candidates(path: Sequence[Point], costs: Costs, count: int, cut: float | None) -> list[Skipped]:
    """As many sets of a path at most: the dense model, and others with evenly spaced costs to the deepest.

    Args:
        cut: the mean share that is to be saved, if it is known: then none saves less than half of it.
    """
    front = pareto(path, costs)
    cuts = [costs.cut(point.skipped) for point in front]
    least = 0.0 if cut is None else cut / 2
    wanted = [max(cuts) - (max(cuts) - least) * i / max(1, count - 2) for i in range(count - 1)]
    nearest = {min(range(len(front)), key=lambda k: (abs(cuts[k] - each), k)) for each in wanted}
    return list(dict.fromkeys([NOTHING, *(front[k].skipped for k in sorted(nearest))]))


def prompt_features(meter: DivergenceMeter, items: Sequence[int]) -> Tensor:
    """What a chooser knows of every prompt of some items, float64 ``(prompts, 2 * BUCKETS)``."""

    def job(replay: Replay, item: int) -> Any:
        held: list[Tensor] = []
        batch = replay.batch
        text = ~batch.visual & batch.prompt & batch.inputs["attention_mask"].bool()

        def before(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            held.append(first_of(args if args else (named["hidden_states"],)))

        handle = replay.layers[0].register_forward_pre_hook(before, with_kwargs=True)
        try:
            replay.run(0, nullcontext)
        finally:
            handle.remove()
        return features(held[0], batch.visual, text).tolist()

    meter.doing = "what is known of each prompt"
    return torch.cat([torch.tensor(each, dtype=torch.float64) for each in meter.each("features", job, items)])


def fitted(
    known: Tensor, measured: Sequence[Measured], cuts: Sequence[float], cut: float | None, most: float
) -> Chooser:
    """The chooser for these levels.

    Args:
        known: float64 ``(prompts, features)``.
        measured: of each level, on the prompts.
        cuts: share of the FLOPs that each level saves.
        cut: the mean share to save at least; None to go by ``most``.
        most: nats that a level may cost a prompt by its guess.
    """
    wanted = torch.tensor([each.divergence for each in measured], dtype=torch.float64).T.clamp(min=LEAST).log()
    mean, spread = known.mean(0), known.std(0, correction=0)
    scaled = (known - mean) / spread.clamp(min=1e-6)
    slopes, left_out = _ridge(scaled, wanted)
    weights = slopes / spread.clamp(min=1e-6)[:, None]
    bias = wanted.mean(0) - mean @ weights
    threshold = _short(math.log(max(most, LEAST)) if cut is None else float(left_out.max()))
    if cut is None:
        gains = deepest(len(cuts), threshold)
    else:
        price = _price((left_out / 2).exp(), torch.tensor(cuts, dtype=torch.float64), cut)
        gains = tuple(price * each for each in cuts)
    rounded = [tuple(_short(value) for value in row) for row in weights.T.tolist()]
    return Chooser(
        tuple(rounded), tuple(_short(value) for value in bias.tolist()), tuple(map(_short, gains)), threshold
    )


def chosen_levels(chooser: Chooser, known: Tensor) -> list[int]:
    """The level of every prompt."""
    return [chooser.choose(row) for row in known.tolist()]


def judged(levels: Sequence[int], measured: Sequence[Measured]) -> Quality:
    """What prompts see, each at its level."""
    pairs = list(enumerate(levels))
    return quality_of(
        Measured(
            tuple(measured[level].divergence[i] for i, level in pairs),
            tuple(measured[level].turned[i] for i, level in pairs),
            tuple(measured[level].agrees[i] for i, level in pairs),
        )
    )


def in_hindsight(measured: Sequence[Measured], cuts: Sequence[float], cut: float) -> list[int]:
    """The levels of the least mean divergence at a mean cut of at least ``cut``, up to one prompt's step: each prompt
    takes the level of which its divergence, less a price for what is saved, is the least."""
    known = torch.tensor([each.divergence for each in measured], dtype=torch.float64).T
    saved = torch.tensor(cuts, dtype=torch.float64)
    levels: list[int] = _at_price(known, saved, _price(known, saved, cut)).tolist()
    return levels


def summed_up(
    chooser: Chooser, sets: Sequence[Skipped], cuts: Sequence[float], known: Tensor, measured: Sequence[Measured]
) -> LevelChoice:
    """What a chooser does on some prompts, beside hindsight at the same mean cut."""
    levels = chosen_levels(chooser, known)
    cut = statistics.fmean(cuts[level] for level in levels)
    best = in_hindsight(measured, cuts, cut)
    counts = tuple(levels.count(level) for level in range(len(sets)))
    return LevelChoice(cut, counts, judged(levels, measured), judged(best, measured))


def _ridge(scaled: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes ``(features, levels)`` with the ridge that guesses left-out prompts best, and those guesses.

    Leaving one prompt out has a closed form: the residual divided by one minus the prompt's leverage (Allen's PRESS).
    """
    count, mean = len(scaled), wanted.mean(0)
    best: tuple[float, Tensor, Tensor] | None = None
    for ridge in RIDGES:
        gram = scaled @ scaled.T + ridge * count * torch.eye(count, dtype=scaled.dtype)
        dual = torch.linalg.solve(gram, wanted - mean)
        hat = torch.linalg.solve(gram, scaled @ scaled.T).diagonal() + 1 / count  # the mean is fitted as well
        residual = (wanted - mean - scaled @ (scaled.T @ dual)) / (1 - hat).clamp(min=1e-6)[:, None]
        error = float((residual**2).mean())
        if best is None or error < best[0]:
            best = error, scaled.T @ dual, wanted - residual
    assert best is not None
    return best[1], best[2]


def _at_price(risks: Tensor, cuts: Tensor, price: float) -> Tensor:
    """The level of each prompt with the least risk less what it saves at a price; of equals the deepest."""
    return len(cuts) - 1 - (risks - price * cuts).flip(1).argmin(1)


def _price(risks: Tensor, cuts: Tensor, cut: float) -> float:
    """The lowest price of a share of the FLOPs at which the mean cut is reached, a Lagrange multiplier; or the highest
    at which any prompt changes its level.

    Args:
        risks: float64 ``(prompts, levels)``.
        cuts: float64 ``(levels,)``.
    """
    apart = cuts[None, :] - cuts[:, None]
    slopes = ((risks[:, None, :] - risks[:, :, None]) / apart)[:, apart > 0]
    prices: list[float] = torch.unique(slopes).tolist()
    if not prices:  # all levels save the same
        return 0.0
    between = [(a + b) / 2 for a, b in itertools.pairwise([*prices, prices[-1] + 1])]
    enough = _first(len(between), lambda i: float(cuts[_at_price(risks, cuts, between[i])].mean()) >= cut - 1e-9)
    return between[enough]


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The first of some numbers from which on something holds, the last if it never does."""
    return min(bisect.bisect_left(range(count), True, key=holds), count - 1)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
