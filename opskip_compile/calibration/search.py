"""The best set of operators under a budget, not the cheapest ones one by one: operators can stand in for each other.

The set grows by what costs the answer least for what it saves, given all that is skipped already. Estimates go stale as
the set grows, so before each step those that look best are measured again. At the budget, members are exchanged for
what makes up for them while the joint divergence falls. Everything is deterministic given the measurements.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opskip_compile.calibration.costs import Costs
from opskip_compile.calibration.divergence_meter import DivergenceMeter, Measured
from opskip_compile.calibration.operator_sets import NOTHING, OperatorId, Skipped
from opskip_compile.calibration.scores import Scores

Unit = Skipped  # what is chosen at once: one operator, or the operators of a layer
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
    _marginal: dict[Unit, float] = field(default_factory=dict)  # newest measured rise of the divergence

    def measure(self, sets: Sequence[Skipped], base: Skipped = NOTHING) -> list[Point]:
        """Measure sets on the samples of this search."""
        return [Point(s, m) for s, m in zip(sets, self.meter.measure(sets, self.items, base), strict=True)]

    def grow(self, until: Callable[[Point], bool]) -> list[Point]:
        """Add units until a point satisfies ``until`` or nothing is left; returns all points, the empty one first."""
        path = self.measure([NOTHING])
        while not until(path[-1]):
            here = path[-1]
            left = [unit for unit in self.units if not unit <= here.skipped]
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
            left = [unit for unit in self.units if not unit <= point.skipped]
            fresh = self._measured_again(point, left)
            fitting = [p for p in fresh.values() if p.divergence < divergence]
            if not fitting:
                return point
            point = min(fitting, key=lambda p: (self.costs.of(p.skipped), p.divergence, sorted(p.skipped)))

    def by_scores(self) -> list[Skipped]:
        """The sets that the scores alone would take, one unit at a time: nothing is measured."""
        path, left = [NOTHING], list(self.units)
        while left:
            here = path[-1]
            best = min(left, key=lambda unit: (self._ratio(here, unit, self._score(unit, here)), sorted(unit)))
            left.remove(best)
            path.append(here | best)
        return path

    def _measured_again(self, here: Point, left: Sequence[Unit]) -> dict[Unit, Point]:
        """The units that look best now, each measured on top of ``here``."""
        chosen = self._ordered(here.skipped, left)[: max(self.refresh, self.block)]
        fresh = dict(zip(chosen, self.measure([here.skipped | u for u in chosen], here.skipped), strict=True))
        for unit, point in fresh.items():
            self._marginal[unit] = point.divergence - here.divergence
        return fresh

    def _step(self, here: Point, fresh: Mapping[Unit, Point], left: Sequence[Unit]) -> Point:
        """The best of the freshly measured, several at once if together they do no more than each alone promises."""
        order = self._ordered(here.skipped, list(fresh))
        others = self._ordered(here.skipped, [unit for unit in left if unit not in fresh])[:1]
        best_left = [self._ratio(here.skipped, unit, self._estimate(unit)) for unit in others] or [float("inf")]
        taken = [u for u in order if u is order[0] or self._ratio(here.skipped, u, self._estimate(u)) <= best_left[0]]
        taken = taken[: self.block]
        while len(taken) > 1:
            (together,) = self.measure([here.skipped.union(*taken)], here.skipped)
            promised = sum(max(self._marginal[unit], self.floor) for unit in taken)
            if together.divergence - here.divergence <= 1.5 * promised + self.floor:
                return together
            taken = taken[: len(taken) // 2]
        return fresh[taken[0]]

    def _better(self, others: Sequence[Point], point: Point) -> Point | None:
        """The best of the others, if it is better than ``point`` by more than noise."""
        best = min(others, key=_by_divergence, default=point)
        return best if best.divergence < point.divergence * GAIN - self.floor else None

    def _by_relief(self, point: Point) -> list[tuple[Unit, Point]]:
        """Members and the set without each, the one first whose return helps the answer most. Measured for those that
        are thought to cost most."""
        members = [unit for unit in self.units if unit <= point.skipped]
        members.sort(key=lambda unit: (-self._estimate(unit), sorted(unit)))
        members = members[: self.refresh]
        without = self.measure([point.skipped - unit for unit in members], point.skipped)
        return sorted(zip(members, without, strict=True), key=lambda pair: (pair[1].divergence, sorted(pair[0])))

    def _exchanges(
        self, point: Point, members: Sequence[tuple[Unit, Point]], most: float, tried: int = 6
    ) -> list[Skipped]:
        """Sets that differ in one member and what makes up for it, the most promising first."""
        left = [unit for unit in self.units if not unit <= point.skipped]
        self._measured_again(point, left)
        promising = []
        for unit, smaller in members:
            changed, promised = point.skipped - unit, smaller.divergence
            order = self._ordered(changed, left)
            while self.costs.of(changed) > most and order:
                enough = [u for u in order if self.costs.of(changed | u) <= most]
                best = min(enough, key=lambda u: (self._estimate(u), sorted(u))) if enough else order[0]
                order.remove(best)
                changed, promised = changed | best, promised + max(self._estimate(best), 0.0)
            if self.costs.of(changed) <= most and promised < point.divergence:
                promising.append((promised, sorted(changed)))
        return [frozenset(changed) for _, changed in sorted(promising)[:tried]]

    def _rebuilt(self, point: Point, members: Sequence[tuple[Unit, Point]], most: float) -> list[Point]:
        """The set without these members, grown again to the budget; the first of them stays out."""
        if not members:
            return []
        out = [unit for unit, _ in members]
        (here,) = self.measure([point.skipped.difference(*out)], point.skipped)
        while self.costs.of(here.skipped) > most:
            left = [unit for unit in self.units if not unit <= here.skipped and unit != out[0]]
            if not left:
                return []
            fresh = self._measured_again(here, left)
            enough = [p for p in fresh.values() if self.costs.of(p.skipped) <= most]
            here = min(enough, key=_by_divergence) if enough else fresh[self._ordered(here.skipped, list(fresh))[0]]
        return [here]

    def _ordered(self, here: Skipped, units: Sequence[Unit]) -> list[Unit]:
        """Units by what they cost the answer for what they save, as far as is known."""
        return sorted(units, key=lambda unit: (self._ratio(here, unit, self._estimate(unit)), sorted(unit)))

    def _estimate(self, unit: Unit) -> float:
        """What skipping a unit costs in nats, as far as is known."""
        known = self._marginal.get(unit)
        return self._score(unit, NOTHING) * self._nats() if known is None else known

    def _nats(self) -> float:
        """What a score is in nats: scores that are no divergences are scaled by what was measured so far."""
        if self.scores.in_nats:
            return 1.0
        scored = sum(self._score(unit, NOTHING) for unit in self._marginal)
        return sum(max(value, 0.0) for value in self._marginal.values()) / scored if scored > 0 else 1.0

    def _score(self, unit: Unit, skipped: Skipped) -> float:
        """The score; where interactions are known, beside what is skipped already."""
        pairs = self.scores.interaction
        if not pairs:
            return sum(self.scores.values[op] for op in unit)
        inside = sum(pairs[a, b] for a in unit for b in unit)
        return inside + 2 * sum(pairs[a, b] for a in unit for b in skipped)

    def _ratio(self, here: Skipped, unit: Unit, divergence: float) -> float:
        saved = self.costs.saved(here, unit)
        return max(divergence, self.floor) / saved if saved > 0 else float("inf")


def _by_divergence(point: Point) -> tuple[float, list[OperatorId]]:
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
    for layer in reversed(units_of(candidates, "layer")):
        path.append(path[-1] | layer)
    return path


def units_of(candidates: Skipped, level: str) -> tuple[Unit, ...]:
    """What is chosen at once, in the order of execution: operators, or the operators of a layer together."""
    if level == "operator":
        return tuple(frozenset({op}) for op in sorted(candidates))
    layers = sorted({op.layer for op in candidates})
    return tuple(frozenset(op for op in candidates if op.layer == layer) for layer in layers)


def pareto(points: Sequence[Point], costs: Costs) -> tuple[Point, ...]:
    """The points that no other one beats in both cost and divergence, the most expensive first."""
    order = sorted(points, key=lambda p: (costs.of(p.skipped), p.divergence, sorted(p.skipped)))
    front: list[Point] = []
    for point in order:
        if not front or point.divergence < front[-1].divergence:
            front.append(point)
    return tuple(reversed(front))
