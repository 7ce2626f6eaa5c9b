"""The best set of operators under a budget, not the cheapest ones one by one: operators can stand in for each other.

The set grows by what costs the answer least for what it saves, given all that is skipped already. Estimates go stale as
the set grows, so before each step those that look best are measured again. At the budget, members are exchanged for
what makes up for them while the joint divergence falls. An operator that keeps a share of its rows can go further down,
or part of the way back. Everything is deterministic given the measurements.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opskip_compile.calibration.costs import Costs
from opskip_compile.calibration.divergence_meter import DivergenceMeter, Measured
from opskip_compile.calibration.operator_sets import NOTHING, OperatorId, Skipped, Step
from opskip_compile.calibration.scores import Scores

Unit = Skipped  # what is chosen at once: one operator down to a share, or the operators of a layer
GAIN = 0.999  # an exchange has to lower the divergence at least by this factor
REBUILT = (2, 3)  # members that are taken out together


@dataclass(frozen=True)
class Point:
    """A set and what it was measured to do to the samples."""

    skipped: Skipped
    measured: Measured

    @property
    def divergence(self) -> float:
        """Mean KL(dense || skipped), nats."""
        return self.measured.mean


@dataclass
class Search:
    """A search on some samples.

    Attributes:
        meter, items: what measures, and on which items.
        costs: what a set costs.
        units: what can be chosen.
        scores: of each operator, from before the search.
        refresh: how many units are measured again before each step.
        block: how many are taken in one step at most.
        floor: nats below which divergences say nothing, from the model's dtype.
    """

    meter: DivergenceMeter
    items: Sequence[int]
    costs: Costs
    units: Sequence[Unit]
    scores: Scores
    refresh: int = 8
    block: int = 1
    floor: float = 1e-9
    _rises: dict[Unit, float] = field(default_factory=dict)  # of the divergence from full on, as newly measured

    def measure(self, sets: Sequence[Skipped], base: Skipped = NOTHING) -> list[Point]:
        """Measure sets on the samples of this search."""
        return [Point(s, m) for s, m in zip(sets, self.meter.measure(sets, self.items, base), strict=True)]

    def grow(self, until: Callable[[Point], bool]) -> list[Point]:
        """Add units until a point satisfies ``until`` or nothing is left; returns all points, the empty one first."""
        path = self.measure([NOTHING])
        while not until(path[-1]):
            here = path[-1]
            left = self._left(here.skipped)
            if not left:
                break
            fresh = self._measured_again(here, left)
            path.append(self._step(here, fresh, left))
        return path

    def refine(self, points: Sequence[Point], most: float, rounds: int = 8) -> Point:
        """The best of some points at a cost of ``most``, made better.

        One member is exchanged for what makes up for it; where that ends, the members that cost the answer most are
        taken out together and the set grows again without the first of them (iterated greedy search).
        """
        point = min(points, key=_by_divergence)
        for _ in range(rounds):
            members = self._by_relief(point)
            sets = self._exchanges(point, members, most)
            better = self._better(self.measure(sets, point.skipped), point)
            if better is None:
                rebuilt = [r for n in REBUILT for r in self._rebuilt(point, members[:n], most)]
                better = self._better(rebuilt, point)
            if better is None:
                return point
            point = better
        return point

    def fill(self, point: Point, divergence: float) -> Point:
        """Add what still fits while the joint divergence stays below ``divergence``."""
        while True:
            fresh = self._measured_again(point, self._left(point.skipped))
            fitting = [p for p in fresh.values() if p.divergence < divergence]
            if not fitting:
                return point
            point = min(fitting, key=lambda p: (self.costs.of(p.skipped), p.divergence, sorted(p.skipped)))

    def by_scores(self) -> list[Skipped]:
        """The sets that the scores alone would take, one unit at a time: nothing is measured."""
        path = [NOTHING]
        while left := self._left(path[-1]):
            here = path[-1]
            best = min(left, key=lambda unit: (self._ratio(here, unit, self.scores.rise(unit, here)), sorted(unit)))
            path.append(here | best)
        return path

    def by_depth(self) -> list[Skipped]:
        """Sets that skip each kind of operator from some layer on, those of the least sum of scores for their cost.

        Depth-monotone and additive, as DOP chooses (arXiv 2507.02909), in this implementation.
        """
        steps = frozenset[Step]().union(*self.units)
        starts = range(max((step.layer for step in steps), default=-1) + 2)
        sets = {
            frozenset(step for step in steps if step.layer >= (attention if step.kind == "attention" else ffn))
            for attention in starts
            for ffn in starts
        }
        scored = sorted((self.costs.of(s), self.scores.rise(s), sorted(s)) for s in sets)
        path: list[Skipped] = []
        least = float("inf")
        for _, rise, skipped in scored:
            if rise < least:
                least = rise
                path.append(frozenset(skipped))
        return path[::-1]

    def _left(self, here: Skipped) -> list[Unit]:
        """The units that would change a set."""
        return [unit for unit in self.units if not unit <= here]

    def _measured_again(self, here: Point, left: Sequence[Unit]) -> dict[Unit, Point]:
        """The units that look best now, each measured on top of ``here``."""
        chosen = self._ordered(here.skipped, left)[: max(self.refresh, self.block)]
        fresh = dict(zip(chosen, self.measure([here.skipped | u for u in chosen], here.skipped), strict=True))
        for unit, point in fresh.items():
            self._rises[unit] = self._rise(unit & here.skipped) + point.divergence - here.divergence
        return fresh

    def _step(self, here: Point, fresh: Mapping[Unit, Point], left: Sequence[Unit]) -> Point:
        """The best of the freshly measured, several at once if together they do no more than each alone promises."""
        order = self._ordered(here.skipped, list(fresh))
        others = self._ordered(here.skipped, [unit for unit in left if unit not in fresh])[:1]
        best_left = [self._expected(here.skipped, unit) for unit in others] or [float("inf")]
        taken = [u for u in order if u is order[0] or self._expected(here.skipped, u) <= best_left[0]]
        taken = _apart(taken)[: self.block]
        while len(taken) > 1:
            (together,) = self.measure([here.skipped.union(*taken)], here.skipped)
            promised = sum(max(self._estimate(here.skipped, unit), self.floor) for unit in taken)
            if together.divergence - here.divergence <= 1.5 * promised + self.floor:
                return together
            taken = taken[: len(taken) // 2]
        return fresh[taken[0]]

    def _better(self, others: Sequence[Point], point: Point) -> Point | None:
        """The best of the others, if it is better than ``point`` by more than noise."""
        best = min(others, key=_by_divergence, default=point)
        return best if best.divergence < point.divergence * GAIN - self.floor else None

    def _by_relief(self, point: Point) -> list[tuple[Unit, Point]]:
        """What can be given back and the set without it, the one first whose return helps the answer most.

        That is a member, or its last steps. Measured for those that are thought to cost most, members first.
        """
        inside = [unit for unit in self.units if unit <= point.skipped]
        members = [unit for unit in inside if not any(unit < other for other in inside)]
        whole = sorted(members, key=lambda unit: (-self._rise(unit), sorted(unit)))[: self.refresh]
        parts = [member - unit for member in whole for unit in self.units if unit < member]
        parts.sort(key=lambda part: (self._relief(point.skipped, part), sorted(part)))
        given = [*whole, *parts[: self.refresh]]
        without = self.measure([point.skipped - unit for unit in given], point.skipped)
        return sorted(zip(given, without, strict=True), key=lambda pair: (pair[1].divergence, sorted(pair[0])))

    def _relief(self, here: Skipped, part: Unit) -> float:
        """Minus the nats that giving steps back is thought to save, for what it costs."""
        whole = frozenset(step for step in here if step.op in {each.op for each in part})
        return (self._rise(whole - part) - self._rise(whole)) / (self.costs.saved(here - part, part) or float("inf"))

    def _exchanges(
        self, point: Point, members: Sequence[tuple[Unit, Point]], most: float, tried: int = 6
    ) -> list[Skipped]:
        """Sets that differ in what was given back and what makes up for it, the most promising first."""
        fresh = self._measured_again(point, self._left(point.skipped))
        promising = self._returns(point, list(fresh), members, most)
        for given, smaller in members:
            changed, promised = point.skipped - given, smaller.divergence
            while self.costs.of(changed) > most:
                left = [unit for unit in self._left(changed) if not unit & given]
                if not left:
                    break
                enough = [u for u in left if self.costs.of(changed | u) <= most]
                order = sorted(enough, key=lambda unit: (self._estimate(changed, unit), sorted(unit)))
                best = (order or self._ordered(changed, left))[0]
                promised += max(self._estimate(changed, best), 0.0)
                changed = changed | best
            if self.costs.of(changed) <= most and promised < point.divergence:
                promising.append((promised, sorted(changed)))
        sets = dict.fromkeys(frozenset(changed) for _, changed in sorted(promising))
        return list(sets)[:tried]

    def _returns(
        self, point: Point, units: Sequence[Unit], members: Sequence[tuple[Unit, Point]], most: float
    ) -> list[tuple[float, list[Step]]]:
        """Sets with one unit more that give back as much as it saves, with the divergence that they promise."""
        promising = []
        for unit in units:
            changed, promised = point.skipped | unit, point.divergence + self._estimate(point.skipped, unit)
            ops = {step.op for step in unit}
            for given, smaller in members:
                touched = {step.op for step in given}
                if not touched & ops and self.costs.of(changed - given) <= most:
                    changed, promised = changed - given, promised - point.divergence + smaller.divergence
                    ops |= touched
            if promised < point.divergence:
                promising.append((promised, sorted(changed)))
        return promising

    def _rebuilt(self, point: Point, members: Sequence[tuple[Unit, Point]], most: float) -> list[Point]:
        """The set without what these members gave back, grown again to the budget; the first of them stays out."""
        if not members:
            return []
        out = [unit for unit, _ in members]
        (here,) = self.measure([point.skipped.difference(*out)], point.skipped)
        while self.costs.of(here.skipped) > most:
            left = [unit for unit in self._left(here.skipped) if not unit & out[0]]
            if not left:
                return []
            fresh = self._measured_again(here, left)
            enough = [p for p in fresh.values() if self.costs.of(p.skipped) <= most]
            here = min(enough, key=_by_divergence) if enough else fresh[self._ordered(here.skipped, list(fresh))[0]]
        return [here]

    def _ordered(self, here: Skipped, units: Sequence[Unit]) -> list[Unit]:
        """Units by what they cost the answer for what they save, as far as is known."""
        return sorted(units, key=lambda unit: (self._expected(here, unit), sorted(unit)))

    def _expected(self, here: Skipped, unit: Unit) -> float:
        return self._ratio(here, unit, self._estimate(here, unit))

    def _estimate(self, here: Skipped, unit: Unit) -> float:
        """What joining a unit to a set costs in nats, as far as is known."""
        return self._rise(unit) - self._rise(unit & here)

    def _rise(self, unit: Unit) -> float:
        """What a unit costs in nats from full on, as far as is known."""
        known = self._rises.get(unit)
        return self.scores.rise(unit) * self._nats() if known is None else known

    def _nats(self) -> float:
        """What a score is in nats: scores that are no divergences are scaled by what was measured so far."""
        if self.scores.in_nats:
            return 1.0
        scored = sum(self.scores.rise(unit) for unit in self._rises)
        return sum(max(value, 0.0) for value in self._rises.values()) / scored if scored > 0 else 1.0

    def _ratio(self, here: Skipped, unit: Unit, divergence: float) -> float:
        saved = self.costs.saved(here, unit)
        return max(divergence, self.floor) / saved if saved > 0 else float("inf")


def _apart(units: Sequence[Unit]) -> list[Unit]:
    """The first unit of each operator."""
    apart: list[Unit] = []
    for unit in units:
        if not any({step.op for step in unit} & {step.op for step in other} for other in apart):
            apart.append(unit)
    return apart


def _by_divergence(point: Point) -> tuple[float, list[Step]]:
    return point.divergence, sorted(point.skipped)


def cheapest(path: Sequence[Skipped], costs: Costs, most: float) -> Skipped | None:
    """The first set of a path that costs at most ``most``."""
    return next((skipped for skipped in path if costs.of(skipped) <= most), None)


def at_random(units: Sequence[Unit], seed: int) -> list[Skipped]:
    """A path in random order."""
    order, path = list(units), [NOTHING]
    random.Random(seed).shuffle(order)
    for unit in order:
        path.append(path[-1] | unit)
    return path


def last_layers(candidates: Skipped) -> list[Skipped]:
    """A path from the last layer to all of them."""
    path = [NOTHING]
    for layer in reversed(units_of(candidates, "layer", whole=True)):
        path.append(path[-1] | layer)
    return path


def units_of(candidates: Skipped, level: str, *, whole: bool = False) -> tuple[Unit, ...]:
    """What is chosen at once, in the order of execution: an operator, or the operators of a layer together, down to
    each of its shares; with ``whole`` only down to nothing."""
    groups: dict[OperatorId | int, list[Step]] = {}
    for step in sorted(candidates):
        groups.setdefault(step.op if level == "operator" else step.layer, []).append(step)
    return tuple(
        frozenset(step for step in group if step.keep >= keep)
        for group in groups.values()
        for keep in sorted({step.keep for step in group}, reverse=True)
        if not (whole and keep)
    )


def pareto(points: Sequence[Point], costs: Costs) -> tuple[Point, ...]:
    """The points that no other one beats in both cost and divergence, the most expensive first."""
    order = sorted(points, key=lambda p: (costs.of(p.skipped), p.divergence, sorted(p.skipped)))
    front: list[Point] = []
    for point in order:
        if not front or point.divergence < front[-1].divergence:
            front.append(point)
    return tuple(reversed(front))
