"""The search, on divergences that are known: against trying every set, and against ranking operators one by one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest

from opskip_compile.calibration.costs import FlopsCosts
from opskip_compile.calibration.divergence_meter import Measured
from opskip_compile.calibration.latency import LatencyCosts
from opskip_compile.calibration.operator_sets import NOTHING, Skipped, Step, all_operators, kept_shares, skipping
from opskip_compile.calibration.scores import Scores
from opskip_compile.calibration.search import Point, Search, at_random, cheapest, pareto, units_of

Divergence = Callable[[Skipped], float]
LAYERS = 4
EVERY = tuple(Step(*op) for op in all_operators(LAYERS))
FULL, LEFT = {"attention": 1.0, "ffn": 3.0}, {"attention": 0.4, "ffn": 0.2}
COSTS = FlopsCosts(
    {step.op: FULL[step.kind] for step in EVERY},
    lambda op, rows: LEFT[op.kind] + rows.keep * (FULL[op.kind] - LEFT[op.kind]),
    lambda skipped: 0.01 if skipped else 0.005,
    frozenset(step.op for step in EVERY),
    frozenset(step.op for step in EVERY),
)
SHARED = COSTS.candidates((0.1, 0.25, 0.5))


class Known:
    """A meter of a known divergence; counts what it was asked."""

    def __init__(self, divergence: Divergence) -> None:
        self.divergence, self.asked = divergence, set[Skipped]()

    def measure(self, sets: Sequence[Skipped], items: Sequence[int], base: Skipped = NOTHING) -> list[Measured]:
        self.asked |= set(sets)
        return [Measured((self.divergence(s),), (0.0,), (True,)) for s in sets]


def scores(divergence: Divergence, method: str = "probe") -> Scores:
    values = {step.op: divergence(frozenset({step})) for step in EVERY}
    return Scores(method, "nats", values, dict.fromkeys(values, 0.0))


def search(divergence: Divergence, units: Sequence[Skipped] | None = None, **more: int) -> Search:
    units = units_of(frozenset(EVERY), "operator") if units is None else units
    return Search(Known(divergence), (0,), COSTS, units, scores(divergence), **more)  # type: ignore[arg-type]


def best_under(divergence: Divergence, most: float) -> float:
    every = (frozenset(c) for n in range(len(EVERY) + 1) for c in itertools.combinations(EVERY, n))
    return min(divergence(s) for s in every if COSTS.of(s) <= most)


def additive(seed: int) -> Divergence:
    prices = {op: random.Random(f"{seed}{op}").expovariate(1) for op in EVERY}
    return lambda skipped: sum(prices[op] for op in skipped)


def with_pairs(seed: int) -> Divergence:
    """Half of the pairs cost more together than alone: they stand in for each other."""
    rng = random.Random(seed)
    alone = {op: rng.expovariate(10) for op in EVERY}
    pairs = {frozenset(pair): rng.expovariate(1) for pair in itertools.combinations(EVERY, 2) if rng.random() < 0.5}
    return lambda skipped: sum(alone[op] for op in skipped) + sum(v for pair, v in pairs.items() if pair <= skipped)


def chosen(search_: Search, most: float, refined: bool = True) -> Point:
    point = next(p for p in search_.grow(lambda p: COSTS.of(p.skipped) <= most) if COSTS.of(p.skipped) <= most)
    ranked = cheapest(search_.by_scores(), COSTS, most)
    assert ranked is not None
    return search_.refine([point, *search_.measure([ranked])], most) if refined else point


@pytest.mark.parametrize("share", [0.25, 0.4, 0.6])
@pytest.mark.parametrize("make", [additive, with_pairs])
def test_near_the_best_of_all_sets(make: Callable[[int], Divergence], share: float) -> None:
    """Within a fifth of the best of all 256 sets on average, and mostly the best itself; never over the budget."""
    most, ratios = COSTS.dense * (1 - share), []
    for seed in range(12):
        divergence = make(seed)
        point = chosen(search(divergence), most)
        assert COSTS.of(point.skipped) <= most
        assert point.divergence == divergence(point.skipped)
        ratios.append(point.divergence / best_under(divergence, most))
    assert min(ratios) == pytest.approx(1)
    assert sum(ratios) / len(ratios) < 1.2
    assert sum(ratio < 1 + 1e-9 for ratio in ratios) >= len(ratios) / 2


def test_joint_measurements_beat_scores_where_operators_stand_in_for_each_other() -> None:
    most, better = COSTS.dense * 0.5, 0
    for seed in range(12):
        divergence = with_pairs(seed)
        search_ = search(divergence)
        ranked = cheapest(search_.by_scores(), COSTS, most)
        assert ranked is not None
        joint = chosen(search_, most).divergence
        assert joint <= divergence(ranked) * (1 + 1e-9)
        better += joint < 0.9 * divergence(ranked)
    assert better >= 6


def test_a_pair_that_must_not_be_skipped_together() -> None:
    """Each alone is free, both together ruin the answer."""
    pair = frozenset({Step(0, "ffn"), Step(1, "ffn")})

    def divergence(skipped: Skipped) -> float:
        return (100.0 if pair <= skipped else 0.0) + 0.1 * len(skipped - pair)

    assert cheapest(search(divergence).by_scores(), COSTS, COSTS.dense * 0.6) >= pair  # type: ignore[operator]
    assert not pair <= chosen(search(divergence), COSTS.dense * 0.6).skipped


def test_blocks_are_taken_back_where_together_they_do_harm() -> None:
    pair = frozenset({Step(0, "ffn"), Step(1, "ffn")})

    def divergence(skipped: Skipped) -> float:
        return (100.0 if pair <= skipped else 0.0) + 0.1 * len(skipped)

    path = search(divergence, block=4).grow(lambda p: COSTS.cut(p.skipped) > 0.5)
    assert all(p.divergence < 100 for p in path)
    assert max(len(b.skipped - a.skipped) for a, b in itertools.pairwise(path)) > 1


def test_growth_ends_with_everything() -> None:
    path = search(additive(0)).grow(lambda point: False)
    assert path[0].skipped == NOTHING
    assert path[-1].skipped == frozenset(EVERY)
    assert all(a.skipped < b.skipped for a, b in itertools.pairwise(path))


def test_fill_stays_below_the_floor() -> None:
    divergence = additive(3)
    search_ = search(divergence)
    point = search_.fill(search_.measure([NOTHING])[0], 0.8)
    assert point.divergence < 0.8
    assert all(divergence(point.skipped | {op}) >= 0.8 for op in EVERY if op not in point.skipped)


def with_shares(seed: int) -> Divergence:
    """Each operator costs more the less it keeps, convexly; some pairs cost more together than alone."""
    rng = random.Random(seed)
    alone = {step.op: (rng.expovariate(1), rng.uniform(1, 4)) for step in EVERY}
    pairs = {pair: rng.expovariate(1) for pair in itertools.combinations(alone, 2) if rng.random() < 0.3}

    def divergence(skipped: Skipped) -> float:
        gone = {op: 1 - keep for op, keep in kept_shares(skipped).items()}
        own = sum(alone[op][0] * gate ** alone[op][1] for op, gate in gone.items())
        return own + sum(
            price * gone[a] * gone[b]
            for (a, b), price in ((tuple(p), v) for p, v in pairs.items())
            if {a, b} <= set(gone)
        )

    return divergence


def shared_search(divergence: Divergence) -> Search:
    by_step = {step: divergence(frozenset({step})) for step in SHARED}
    whole = {step.op: value for step, value in by_step.items() if not step.keep}
    kept = {step: value for step, value in by_step.items() if step.keep}
    known = Scores("probe", "nats", whole, dict.fromkeys(whole, 0.0), kept=kept)
    return Search(Known(divergence), (0,), COSTS, units_of(SHARED, "operator"), known)  # type: ignore[arg-type]


def test_units_lead_step_by_step_to_nothing() -> None:
    units = units_of(SHARED, "operator")
    assert len(units) == 4 * 2 * LAYERS
    assert [len(unit) for unit in units[:4]] == [1, 2, 3, 4]
    assert all(a < b for a, b in itertools.pairwise(units[:4]))
    assert [kept_shares(unit) for unit in units[:4]] == [{EVERY[0].op: keep} for keep in (0.5, 0.25, 0.1, 0)]
    whole = units_of(SHARED, "operator", whole=True)
    assert [kept_shares(unit) for unit in whole] == [{step.op: 0} for step in EVERY]
    assert [len(unit) for unit in units_of(SHARED, "layer")[:4]] == [2, 4, 6, 8]


@pytest.mark.parametrize("cut", [0.3, 0.5, 0.65])
def test_shares_come_near_to_the_best_there_is(cut: float) -> None:
    """Two layers, so that all 625 sets can be tried: the mean over 12 divergences is within 6 % of the best."""
    ops = [step.op for step in EVERY if step.layer < 2]
    few = frozenset(step for step in SHARED if step.layer < 2)
    shares = (0.1, 0.25, 0.5)
    ladders = [[NOTHING, *(skipping([op], shares, keep) for keep in (0.5, 0.25, 0.1, 0.0))] for op in ops]
    every = [frozenset().union(*each) for each in itertools.product(*ladders)]
    full = sum(FULL[op.kind] for op in ops)
    most = COSTS.dense - cut * full
    found, best = 0.0, 0.0
    for seed in range(12):
        divergence = with_shares(seed)
        search_ = shared_search(divergence)
        search_.units = units_of(few, "operator")
        point = chosen(search_, most)
        assert COSTS.of(point.skipped) <= most
        found += point.divergence
        best += min(divergence(s) for s in every if COSTS.of(s) <= most)
    assert best <= found <= 1.06 * best


def test_shares_beat_whole_operators() -> None:
    """Where a share costs less than its part, at equal cost."""
    most = COSTS.dense * 0.5
    for seed in range(6):
        divergence = with_shares(seed)
        whole = search(divergence, units_of(SHARED, "operator", whole=True))
        assert chosen(shared_search(divergence), most).divergence < chosen(whole, most).divergence


def test_growth_by_shares_ends_with_everything() -> None:
    path = shared_search(with_shares(1)).grow(lambda point: False)
    assert path[-1].skipped == SHARED
    assert all(a.skipped < b.skipped for a, b in itertools.pairwise(path))
    ranked = shared_search(with_shares(1)).by_scores()
    assert ranked[-1] == SHARED
    assert all(a < b for a, b in itertools.pairwise(ranked))


def test_scores_of_shares_that_were_not_scored() -> None:
    """A gate that is open by the share: linear alone, with both shares in an interaction."""
    a, b = EVERY[0], EVERY[1]
    plain = Scores("first_order", "", {a.op: 2.0, b.op: 3.0}, {})
    half = skipping([a.op], (0.1, 0.25, 0.5), 0.5)
    quarter = skipping([a.op], (0.1, 0.25, 0.5), 0.25)
    assert plain.rise(half) == pytest.approx(1.0)
    assert plain.rise(quarter, half) == pytest.approx(0.5)
    pairs = {(a.op, a.op): 2.0, (b.op, b.op): 3.0, (a.op, b.op): -0.5, (b.op, a.op): -0.5}
    aware = Scores("fisher", "", {a.op: 2.0, b.op: 3.0}, {}, interaction=pairs)
    assert aware.rise(half) == pytest.approx(2.0 * 0.25)
    assert aware.rise(quarter, half | {b}) == pytest.approx(2.0 * (0.75**2 - 0.5**2) + 2 * -0.5 * (0.75 - 0.5))


def test_milliseconds_of_shares() -> None:
    """Layers whose operators keep the same share have their row; others save what each of the two saves alone."""
    table = {"full": 100.0, "attend": 40.0, "transform": 80.0, "silent": 10.0}
    table |= {"attend@keep=0.5": 70.0, "transform@keep=0.5": 90.0, "silent@keep=0.5": 55.0}
    costs = LatencyCosts(table, LAYERS, COSTS.candidates((0.5,)))
    shares = (0.5,)
    both = skipping([(0, "attention"), (0, "ffn")], shares, 0.5)
    assert costs.of(both) == (300 + 55) / 4
    assert costs.of(both | {Step(0, "ffn")}) == (300 + 90 + 40 - 100) / 4
    assert costs.of(both | {Step(0, "ffn"), Step(0, "attention")}) == (300 + 10) / 4


def test_by_depth_is_the_best_sum_of_scores() -> None:
    """Against trying every pair of depths, at every budget; an operator is skipped with all later ones of its kind."""
    divergence = additive(4)
    path = search(divergence).by_depth()
    assert path[0] == NOTHING
    assert path[-1] == frozenset(EVERY)
    pairs = [
        frozenset(s for s in EVERY if s.layer >= (a if s.kind == "attention" else f))
        for a in range(LAYERS + 1)
        for f in range(LAYERS + 1)
    ]
    for cut in (0.2, 0.35, 0.5, 0.65):
        most = COSTS.dense * (1 - cut)
        chosen_ = cheapest(path, COSTS, most)
        assert chosen_ in pairs
        assert divergence(chosen_) == min(divergence(s) for s in pairs if COSTS.of(s) <= most)


def test_whole_layers_are_chosen_together() -> None:
    units = units_of(frozenset(EVERY), "layer")
    assert [len(unit) for unit in units] == [2] * LAYERS
    point = chosen(search(additive(1), units), COSTS.dense * 0.5)
    assert all(
        (Step(layer, "attention") in point.skipped) == (Step(layer, "ffn") in point.skipped) for layer in range(4)
    )
    assert units_of(frozenset({Step(1, "ffn")}), "layer") == (frozenset({Step(1, "ffn")}),)


def test_fewer_are_measured_than_there_are() -> None:
    search_ = search(additive(0), refresh=2)
    search_.grow(lambda point: False)
    assert len(search_.meter.asked) < 2 * len(EVERY) + 2  # type: ignore[attr-defined]


def test_scores_that_are_no_divergences_are_held_against_those_measured() -> None:
    """Norms of a hundred do not keep an operator from being looked at beside divergences of a thousandth."""
    divergence = additive(5)
    small = lambda s: divergence(s) / 1000  # noqa: E731
    search_ = Search(
        Known(small),
        (0,),
        COSTS,
        units_of(frozenset(EVERY), "operator"),
        Scores(  # type: ignore[arg-type]
            "update_norm", "", {step.op: 100 * divergence(frozenset({step})) for step in EVERY}, {}
        ),
        refresh=2,
    )
    most = COSTS.dense * 0.5
    assert chosen(search_, most).divergence == pytest.approx(best_under(small, most), rel=0.3)


def test_interactions_of_scores() -> None:
    """With pairs known, ranking avoids the pair that costs most together."""
    divergence = with_pairs(2)
    pairs = {}
    for a in EVERY:
        for b in EVERY:
            together = divergence(frozenset({a, b}))
            pairs[a.op, b.op] = (
                together if a == b else (together - divergence(frozenset({a})) - divergence(frozenset({b}))) / 2
            )
    alone, most = scores(divergence), COSTS.dense * 0.5
    known = Scores("fisher", "nats", alone.values, alone.errors, interaction=pairs)
    plain, aware = search(divergence), search(divergence)
    aware.scores = known
    by = [divergence(cheapest(s.by_scores(), COSTS, most) or NOTHING) for s in (plain, aware)]
    assert by[1] < by[0]


def test_front_has_only_points_that_nothing_beats() -> None:
    points = [
        Point(frozenset(s), Measured((d,), (0.0,), (True,)))
        for s, d in (((), 0.0), ((EVERY[0],), 2.0), ((EVERY[1],), 1.0), ((EVERY[1], EVERY[3]), 1.5), ((EVERY[3],), 3.0))
    ]
    front = pareto(points, COSTS)
    assert [p.divergence for p in front] == [0.0, 1.0, 1.5]
    assert [COSTS.of(p.skipped) for p in front] == sorted((COSTS.of(p.skipped) for p in front), reverse=True)


def test_random_paths_are_the_same_for_a_seed() -> None:
    units = units_of(frozenset(EVERY), "operator")
    assert at_random(units, 1) == at_random(units, 1) != at_random(units, 2)
    assert at_random(units, 1)[-1] == frozenset(EVERY)


def test_milliseconds_go_by_layer_state() -> None:
    table = {"full": 100.0, "attend": 40.0, "transform": 80.0, "silent": 10.0}
    costs = LatencyCosts(table, 4, frozenset(EVERY) - {Step(3, "ffn")})
    assert costs.dense == 100
    skipped = frozenset({Step(0, "ffn"), Step(1, "attention"), Step(2, "ffn"), Step(2, "attention")})
    assert costs.of(skipped) == pytest.approx((40 + 80 + 10 + 100) / 4)
    assert costs.of(frozenset({Step(3, "ffn")})) == 100  # the compiler would leave it full
    assert costs.saved(frozenset({Step(0, "ffn")}), frozenset({Step(0, "attention")})) == pytest.approx(0.075)
