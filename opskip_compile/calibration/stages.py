"""The stages of a calibration: scores, search, controls, a check of stability, and the result put together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from opskip_compile.calibration import levels as leveling
from opskip_compile.calibration.config import CalibrationConfig
from opskip_compile.calibration.costs import Costs, FlopsCosts
from opskip_compile.calibration.data import (
    Choice,
    LevelChoice,
    Levels,
    Quality,
    Spent,
    Stability,
    choice_of,
    quality_of,
)
from opskip_compile.calibration.divergence_meter import DivergenceMeter, Measured
from opskip_compile.calibration.operator_sets import Skipped, all_operators, as_schedule, left_out
from opskip_compile.calibration.result import CalibrationResult
from opskip_compile.calibration.scores import Scores, score
from opskip_compile.calibration.search import (
    Point,
    Search,
    Unit,
    at_random,
    cheapest,
    last_layers,
    pareto,
    units_of,
)
from opskip_compile.errors import OpSkipError
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.schedule import Schedule

RANDOM_SEEDS = 10
STEPS = 24  # the set grows in about as many steps, whatever the depth
_FLOORS = {torch.float16: 1e-6, torch.bfloat16: 1e-5}  # nats below which a divergence says nothing


class Stages:
    """One run: the parts of it share what was measured.

    Args:
        meter: on the samples.
        config: how to calibrate.
        flops: of a prefill, by what is skipped.
        costs: of a prefill in the unit of the budget; the same as ``flops`` where that is FLOPs.
        candidates: steps that the compiler can take.
        about: what the measurements depend on.
    """

    def __init__(
        self,
        meter: DivergenceMeter,
        config: CalibrationConfig,
        flops: FlopsCosts,
        costs: Costs,
        candidates: Skipped,
        about: Mapping[str, Any],
    ) -> None:
        self.meter, self.samples, self.config, self.budget = meter, meter.samples, config, config.target
        self.flops, self.costs, self.candidates, self.about = flops, costs, candidates, about
        self.model, self.num_layers, self.most = meter.model, meter.num_layers, self.budget.cost(costs)
        self.inside, self.outside = self.samples.split(config.holdout, config.seed)
        self.searched = self._at_most(config.search_samples)

    def run(self, started: float) -> CalibrationResult:
        """All stages. ``started`` is what `time.perf_counter` was when the calibration began."""
        config, meter = self.config, self.meter
        scores = score(config.method, meter, self.searched, config.seed, self.candidates)
        path, chosen = self._search(self.searched, scores, self._units(), "growing the set")
        controls = self._controls(scores, chosen) if config.controls else {}
        stability = self._stability() if config.stability and len(self.searched) >= 4 else None
        front = self._choices(pareto([*path, chosen], self.costs))
        choice = next(c for c in (*front, *self._choices([chosen])) if c.skipped == chosen.skipped)
        choice = replace(choice, schedule=self._schedule(choice))
        levels = self._levels(path, chosen, choice) if config.levels > 1 else None
        per_prompt = self.flops.dense
        spent = meter.all_layer_runs * self.flops.layer()
        return CalibrationResult(
            chosen=choice,
            scores=scores,
            front=front,
            controls=controls,
            stability=stability,
            full=tuple(op.name for op in all_operators(self.num_layers) if op not in self.flops.whole),
            without_shares=tuple(op.name for op in sorted(self.flops.whole - self.flops.partial) if config.shares),
            num_layers=self.num_layers,
            unit=self.costs.unit,
            dense_cost=self.costs.dense,
            about=(choice.schedule if levels is None else levels.schedule).provenance,
            spent=Spent(time.perf_counter() - started, spent, spent / per_prompt / self.samples.count),
            levels=levels,
        )

    def _levels(self, path: Sequence[Point], chosen: Point, choice: Choice) -> Levels:
        """Several sets of the path, and what chooses among them for each prompt."""
        cut = None if self.most is None else 1 - self.most / self.costs.dense
        sets = leveling.candidates([*path, chosen], self.flops, self.config.levels, cut)
        costs = self.flops.of_levels([left_out(skipped, self.config.rows) for skipped in sets])
        cuts = [1 - cost / self.flops.dense for cost in costs]
        self.meter.doing = "measuring levels"
        measured = self.meter.measure(sets, self.inside)
        known = leveling.prompt_features(self.meter, self.inside)
        chooser = leveling.fitted(known, measured, cuts, cut, self.budget.divergence or 0.0)
        inside = leveling.summed_up(chooser, sets, cuts, known, measured)
        outside = None
        if self.outside:
            known = leveling.prompt_features(self.meter, self.outside)
            outside = leveling.summed_up(chooser, sets, cuts, known, self.meter.measure(sets, self.outside))
        plain, cut = choice.schedule, (outside or inside).cut
        about: dict[str, Any] = {
            name: each and _of_levels(each) for name, each in (("calibration", inside), ("heldout", outside))
        }
        schedule = Schedule(
            levels=tuple(as_schedule(skipped, self.config.rows) for skipped in sets),
            chooser=chooser,
            modalities=self.samples.modalities,
            model=plain.model,
            provenance={
                **plain.provenance,
                **about,
                "samples": inside.quality.samples,
                "flops_cut": _short(cut),
                "cost": [_short((1 - cut) * self.costs.dense), _short(self.costs.dense), self.costs.unit],
            },
            name=plain.name,
        )
        return Levels(schedule, inside, outside)

    def _at_most(self, count: int | None) -> Sequence[int]:
        """Items to search on, evenly spread, with that many samples at most but one item at least."""
        samples = sum(len(self.samples.items[i].names) for i in self.inside)
        items = len(self.inside) if count is None else max(1, len(self.inside) * min(count, samples) // samples)
        return [self.inside[i * len(self.inside) // items] for i in range(items)]

    def _units(self, level: str | None = None, *, whole: bool = False) -> tuple[Unit, ...]:
        return units_of(self.candidates, level or self.config.level, whole=whole)

    def _search(
        self, items: Sequence[int], scores: Scores, units: Sequence[Unit], doing: str
    ) -> tuple[list[Point], Point]:
        """The path, and the point of it that the budget asks for, refined."""
        self.meter.doing = doing
        search = self._searcher(items, scores, units)
        most, divergence = self.most, self.budget.divergence
        joint, whole = self.config.search == "joint", self.config.whole_front
        all_skipped = self.flops.cut(self.candidates)
        deepest = all_skipped if most is None else (all_skipped + 1 - most / self.costs.dense) / 2

        def enough(point: Point) -> bool:
            if whole:
                return False
            if self.config.levels > 1:  # prompts that bear more make up for those that bear less
                return self.flops.cut(point.skipped) >= deepest
            if most is not None:
                return self.costs.of(point.skipped) <= most
            return divergence is not None and point.divergence >= divergence

        ranked = search.by_depth() if self.config.search == "depth" else search.by_scores()
        path = search.grow(enough) if joint else search.measure(_thinned(ranked, self.costs, most))
        if most is not None:
            chosen = next(point for point in path if self.costs.of(point.skipped) <= most)
            if not joint:
                return path, chosen
            by_scores = cheapest(ranked, self.costs, most)
            others = search.measure([] if by_scores is None else [by_scores])
            return path, search.refine([chosen, *others], most)
        assert divergence is not None
        below = [point for point in path if point.divergence < divergence]
        chosen = min(below, key=lambda point: (self.costs.of(point.skipped), point.divergence))
        return path, search.fill(chosen, divergence) if joint else chosen

    def _searcher(self, items: Sequence[int], scores: Scores, units: Sequence[Unit]) -> Search:
        dtype = next(self.model.parameters()).dtype
        return Search(
            self.meter,
            items,
            self.costs,
            units,
            scores,
            refresh=self.config.refresh,
            block=max(1, len(units) // STEPS),
            floor=_FLOORS.get(dtype, 1e-9),
        )

    def _controls(self, scores: Scores, chosen: Point) -> dict[str, tuple[Choice, ...]]:
        """Other ways to cut as much as was chosen."""
        most = self.costs.of(chosen.skipped)
        controls: dict[str, tuple[Choice, ...]] = {}
        others: dict[str, Sequence[Unit]] = {}
        if any(step.keep for step in self.candidates):
            others["without shares"] = self._units(whole=True)
        if self.config.level == "operator":
            others["whole layers"] = self._units("layer", whole=True)
        for name, units in others.items():
            path, point = self._search(self.searched, scores, units, f"control: {name}")
            controls[name] = self._choices(pareto([*path, point], self.costs))
        self.meter.doing = "control: random sets"
        units = self._units(whole=True)
        drawn = [cheapest(at_random(units, seed), self.costs, most) for seed in range(RANDOM_SEEDS)]
        controls["random"] = self._judged([skipped for skipped in drawn if skipped is not None])
        self.meter.doing = "control: the last layers"
        late = last_layers(self.candidates)
        reached = cheapest(late, self.costs, most)
        controls["late"] = self._judged([skipped for skipped in late if reached is None or skipped <= reached][1:])
        return controls

    def _judged(self, sets: Sequence[Skipped]) -> tuple[Choice, ...]:
        """Sets that no search chose, measured on held-out samples if there are any."""
        items = self.outside or self.searched
        measured = self.meter.measure(sets, items)
        return tuple(
            self._choice(s, *((None, quality_of(m)) if self.outside else (quality_of(m), None)))
            for s, m in zip(sets, measured, strict=True)
        )

    def _choices(self, points: Sequence[Point]) -> tuple[Choice, ...]:
        self.meter.doing = "measuring held-out samples"
        outside: Sequence[Measured | None] = [None] * len(points)
        if self.outside:
            outside = self.meter.measure([point.skipped for point in points], self.outside)
        return tuple(
            self._choice(p.skipped, quality_of(p.measured), None if out is None else quality_of(out))
            for p, out in zip(points, outside, strict=True)
        )

    def _choice(self, skipped: Skipped, *qualities: Quality | None) -> Choice:
        cut, cost = self.flops.cut(skipped), self.costs.of(skipped)
        choice = choice_of(skipped, self.config.rows, cut, cost, *qualities)
        return replace(choice, schedule=replace(choice.schedule, modalities=self.samples.modalities))

    def _stability(self) -> Stability:
        halves = (self.searched[::2], self.searched[1::2])
        method, seed = self.config.method, self.config.seed
        scores = [score(method, self.meter, half, seed, self.candidates) for half in halves]
        chosen = []
        for half, half_scores in zip(halves, scores, strict=True):
            _, point = self._search(half, half_scores, self._units(), "searching on half of the samples")
            chosen.append(point.skipped)
        first, second = chosen
        either = len(first | second)
        every = sorted(self.flops.whole)
        values = [[half_scores.values[op] for op in every] for half_scores in scores]
        return Stability(first, second, len(first & second) / either if either else 1.0, _rank_correlation(*values))

    def _schedule(self, choice: Choice) -> Schedule:
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
                name: getattr(self.config, name) for name in ("method", "level", "search", "seed", "holdout", "refresh")
            },
            "shares": list(self.config.shares),
            "samples": sum(len(self.samples.items[i].names) for i in self.searched),
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
            choice.skipped,
            self.config.rows,
            modalities=self.samples.modalities,
            model={"architecture": name, **sizes},
            provenance=provenance,
            name="calibrated",
        )


def _thinned(path: Sequence[Skipped], costs: Costs, most: float | None) -> list[Skipped]:
    """Some `STEPS` sets of a path, with the ends and the first one under the budget."""
    stride = max(1, len(path) // STEPS)
    wanted = {*path[::stride], path[-1], *([] if most is None else [cheapest(path, costs, most)])}
    return [skipped for skipped in path if skipped in wanted]


def _of_levels(levels: LevelChoice) -> dict[str, Any]:
    """What of levels goes into a schedule's provenance."""
    names = ("divergence", "error", "agreement", "samples")
    return {
        "flops_cut": _short(levels.cut),
        **{name: _short(getattr(levels.quality, name)) for name in names},
        "counts": list(levels.counts),
        "hindsight": {name: _short(getattr(levels.hindsight, name)) for name in names[:-1]},
    }


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
