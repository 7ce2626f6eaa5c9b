"""The stages of a calibration: scores, search, controls, a check of stability, and the result put together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from opskip_compile.calibration.budget import Budget
from opskip_compile.calibration.costs import Costs, FlopsCosts
from opskip_compile.calibration.meter import Measured, Meter
from opskip_compile.calibration.operators import Operator, Skipped, as_schedule, operators
from opskip_compile.calibration.options import Options
from opskip_compile.calibration.result import CalibrationResult, Choice, Quality, Spent, Stability, choice_of
from opskip_compile.calibration.samples import Samples
from opskip_compile.calibration.scores import Scores, score
from opskip_compile.calibration.search import Point, Search, at_random, cheapest, pareto, units_of
from opskip_compile.errors import OpSkipError
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.schedule import Schedule

RANDOM_SEEDS = 10
STEPS = 24  # the set grows in about as many steps, whatever the depth
_FLOORS = {torch.float16: 1e-6, torch.bfloat16: 1e-5}  # nats below which a divergence says nothing


class Stages:
    """One run: the parts of it share what was measured."""

    def __init__(
        self,
        meter: Meter,
        samples: Samples,
        options: Options,
        budget: Budget,
        flops: FlopsCosts,
        costs: Costs,
        candidates: Skipped,
        about: Mapping[str, Any],
    ) -> None:
        self.meter, self.samples, self.options, self.budget = meter, samples, options, budget
        self.flops, self.costs, self.candidates, self.about = flops, costs, candidates, about
        self.model, self.num_layers, self.most = meter.model, meter.num_layers, budget.cost(costs)
        self.inside, self.outside = samples.split(options.holdout, options.seed)

    def run(self, started: float) -> CalibrationResult:
        options, meter = self.options, self.meter
        scores = score(options.method, meter, self.inside, options.seed)
        path, chosen = self._search(self.inside, scores, options.level, "growing the set")
        controls = self._controls(scores, chosen) if options.controls else {}
        stability = self._stability() if options.stability and len(self.inside) >= 4 else None
        front = self._choices(pareto([*path, chosen], self.costs))
        ours = next(c for c in (*front, *self._choices([chosen])) if c.skipped == chosen.skipped)
        ours = replace(ours, schedule=self._schedule(chosen.skipped, ours))
        per_prompt = self.flops.dense
        spent = meter.all_layer_runs * self.flops.layer()
        return CalibrationResult(
            chosen=ours,
            scores=scores,
            front=front,
            controls=controls,
            stability=stability,
            full=tuple(op.name for op in operators(self.num_layers) if op not in self.candidates),
            num_layers=self.num_layers,
            unit=self.costs.unit,
            dense_cost=self.costs.dense,
            about=ours.schedule.provenance,
            spent=Spent(time.perf_counter() - started, spent, spent / per_prompt / self.samples.count),
        )

    def _search(self, items: Sequence[int], scores: Scores, level: str, doing: str) -> tuple[list[Point], Point]:
        """The path, and the point of it that the budget asks for, refined."""
        self.meter.doing = doing
        search = self._searcher(items, scores, level)
        most, divergence = self.most, self.budget.divergence
        joint, whole = self.options.search == "joint", self.options.whole_front

        def enough(point: Point) -> bool:
            if whole:
                return False
            if most is not None:
                return self.costs.of(point.skipped) <= most
            return divergence is not None and point.divergence >= divergence

        path = search.grow(enough) if joint else search.measure(_thinned(search.by_scores(), self.costs, most))
        if most is not None:
            chosen = next(point for point in path if self.costs.of(point.skipped) <= most)
            if not joint:
                return path, chosen
            ranked = cheapest(search.by_scores(), self.costs, most)
            others = search.measure([] if ranked is None else [ranked])
            return path, search.refine([chosen, *others], most)
        assert divergence is not None
        below = [point for point in path if point.divergence < divergence]
        chosen = min(below, key=lambda point: (self.costs.of(point.skipped), point.divergence))
        return path, search.fill(chosen, divergence) if joint else chosen

    def _searcher(self, items: Sequence[int], scores: Scores, level: str) -> Search:
        units = units_of(self.candidates, level)
        dtype = next(self.model.parameters()).dtype
        return Search(
            self.meter,
            items,
            self.costs,
            units,
            scores,
            refresh=self.options.refresh,
            block=max(1, len(units) // STEPS),
            floor=_FLOORS.get(dtype, 1e-9),
        )

    def _controls(self, scores: Scores, chosen: Point) -> dict[str, tuple[Choice, ...]]:
        """Other ways to cut as much as was chosen."""
        most = self.costs.of(chosen.skipped)
        found: dict[str, tuple[Choice, ...]] = {}
        if self.options.level == "operator":
            path, point = self._search(self.inside, scores, "layer", "control: whole layers")
            found["whole layers"] = self._choices(pareto([*path, point], self.costs))
        self.meter.doing = "control: random sets"
        units = units_of(self.candidates, self.options.level)
        drawn = [cheapest(at_random(units, seed), self.costs, most) for seed in range(RANDOM_SEEDS)]
        found["random"] = self._judged([skipped for skipped in drawn if skipped is not None])
        self.meter.doing = "control: the last layers"
        last = [units_of(self.candidates, "layer")[-n:] for n in range(len(units_of(self.candidates, "layer")) + 1)]
        late = [frozenset[Operator]().union(*layers) if n else frozenset[Operator]() for n, layers in enumerate(last)]
        reached = cheapest(late, self.costs, most)
        found["late"] = self._judged(
            [skipped for skipped in late if reached is None or len(skipped) <= len(reached)][1:]
        )
        return found

    def _judged(self, sets: Sequence[Skipped]) -> tuple[Choice, ...]:
        """Sets that nothing was chosen by: on held-out samples if there are any."""
        items = self.outside or self.inside
        found = self.meter.measure(sets, items)
        return tuple(
            self._choice(s, *((None, _quality(m)) if self.outside else (_quality(m), None)))
            for s, m in zip(sets, found, strict=True)
        )

    def _choices(self, points: Sequence[Point]) -> tuple[Choice, ...]:
        self.meter.doing = "measuring held-out samples"
        outside: Sequence[Measured | None] = [None] * len(points)
        if self.outside:
            outside = self.meter.measure([point.skipped for point in points], self.outside)
        return tuple(
            self._choice(p.skipped, _quality(p.measured), None if out is None else _quality(out))
            for p, out in zip(points, outside, strict=True)
        )

    def _choice(self, skipped: Skipped, *qualities: Quality | None) -> Choice:
        cut, cost = self.flops.cut(skipped), self.costs.of(skipped)
        return choice_of(skipped, self.options.rows, cut, cost, *qualities)

    def _stability(self) -> Stability:
        halves = (self.inside[::2], self.inside[1::2])
        scores = [score(self.options.method, self.meter, half, self.options.seed) for half in halves]
        chosen = []
        for half, opinion in zip(halves, scores, strict=True):
            _, point = self._search(half, opinion, self.options.level, "searching on half of the samples")
            chosen.append(point.skipped)
        first, second = chosen
        either = len(first | second)
        every = sorted(self.candidates)
        values = [[opinion.values[op] for op in every] for opinion in scores]
        return Stability(first, second, len(first & second) / either if either else 1.0, _rank_correlation(*values))

    def _schedule(self, skipped: Skipped, choice: Choice) -> Schedule:
        """The chosen schedule with the model that it is for and where it came from."""
        try:
            sizes = {k: v for k, v in vars(Geometry.from_config(self.model)).items() if k != "gated"}
        except OpSkipError:
            sizes = {"num_layers": self.num_layers}
        rows = [rows for item in self.samples.items for rows in item.rows]
        provenance = {
            "source": "opskip calibrate",
            "budget": str(self.budget),
            **{
                name: getattr(self.options, name)
                for name in ("method", "level", "search", "seed", "holdout", "refresh")
            },
            "samples": sum(len(self.samples.items[i].names) for i in self.inside),
            "visual_rows": round(statistics.fmean(r.visual for r in rows), 2),
            "text_rows": round(statistics.fmean(r.all - r.visual for r in rows), 2),
            "flops_cut": _short(choice.cut),
            "cost": [_short(choice.cost), _short(self.costs.dense), self.costs.unit],
            "calibration": _shortened(choice.calibration),
            "heldout": _shortened(choice.heldout),
            **self.about,
        }
        config = getattr(self.model, "config", None)
        name = getattr(config, "model_type", None) or type(self.model).__name__
        return as_schedule(
            skipped, self.options.rows, model={"architecture": name, **sizes}, provenance=provenance, name="calibrated"
        )


def _thinned(path: Sequence[Skipped], costs: Costs, most: float | None) -> list[Skipped]:
    """Some `STEPS` sets of a path, with the ends and the first one under the budget."""
    stride = max(1, len(path) // STEPS)
    wanted = {*path[::stride], path[-1], *([] if most is None else [cheapest(path, costs, most)])}
    return [skipped for skipped in path if skipped in wanted]


def _quality(measured: Measured) -> Quality:
    return Quality(
        measured.mean,
        measured.error,
        statistics.fmean(measured.turned),
        measured.agreement,
        len(measured.agrees),
    )


def _shortened(quality: Quality | None) -> dict[str, Any] | None:
    """What of it goes into a schedule's provenance."""
    names = ("divergence", "error", "agreement", "samples")
    return None if quality is None else {name: _short(getattr(quality, name)) for name in names}


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank."""
    a, b = _ranks(first), _ranks(second)
    if len(set(a)) == 1 or len(set(b)) == 1:
        return 1.0 if a == b else 0.0
    return statistics.correlation(a, b)


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [order.index(v) + (order.count(v) - 1) / 2 for v in values]
