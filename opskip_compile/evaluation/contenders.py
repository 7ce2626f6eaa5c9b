"""Who takes part in an evaluation: each method at each cut, as a schedule or as token dropping.

A method is asked for a share of the FLOPs and gives the least that reaches it, so each of them says what it really cut.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from opskip_compile.calibration.batches import PromptRows
from opskip_compile.calibration.costs import FlopsCosts
from opskip_compile.calibration.operators import Skipped, as_schedule
from opskip_compile.calibration.search import at_random, cheapest, units_of
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.schedule import Rows, Schedule
from opskip_compile.timing.dropping import Dropping

DENSE = "dense"
# How `calibrate` makes each of them. ShortV (arXiv 2504.00502) ranks layers by the KL of the output when the visual
# rows of one layer are frozen, each layer by itself.
CALIBRATED = {"operators": ("operator", "joint"), "layers": ("layer", "joint"), "shortv": ("layer", "scores")}
PLAIN = ("fastv", "vtw", "random", "late")
METHODS = (*CALIBRATED, *PLAIN)
FASTV_LAYER = 2  # of the published setting: rows leave before layer 2 (arXiv 2403.06764)


@dataclass(frozen=True)
class Contender:
    """One run over the questions.

    Attributes:
        method: of `METHODS`, ``"dense"``, or the name of a schedule that was given.
        asked: share of FLOPs to save; None where nobody asked for one.
        cut: share that it saves, the mean over the prompts.
        schedule: what it skips; None for token dropping.
        dropping: which rows leave; None for a schedule.
        seed: of a random choice.
    """

    method: str
    asked: float | None
    cut: float
    schedule: Schedule | None = None
    dropping: Dropping | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """For messages and tables."""
        asked = "" if self.asked is None else f" {self.asked:.1%}"
        return f"{self.method}{asked}" + ("" if self.seed is None else f" #{self.seed}")

    @property
    def spec(self) -> str:
        """What it does, in full: one text for one thing to do."""
        if self.schedule is not None:
            return self.schedule.to_spec()
        assert self.dropping is not None
        return f"{self.dropping.share!r} of the visual rows leave before layer {self.dropping.layer}"


@dataclass(frozen=True)
class Field:
    """What the contenders share: the prompts and what operators cost in them.

    Attributes:
        costs: of `flops_costs`, by the rows that a skipped operator leaves out.
        candidates: operators that the compiler can skip.
        prompts: rows of each.
        geometry: of the decoder; None where the formula of FLOPs does not apply, and then no tokens can be dropped.
        rows: the row set of the methods' own schedules.
    """

    costs: Mapping[Rows, FlopsCosts]
    candidates: Skipped
    prompts: Sequence[PromptRows]
    geometry: Geometry | None
    num_layers: int
    rows: Rows

    @property
    def own_costs(self) -> FlopsCosts:
        """With the row set of the methods' own schedules."""
        return self.costs[self.rows]

    def given(self, name: str, schedule: Schedule, asked: float | None = None) -> Contender:
        """A schedule; what the compiler leaves full saves nothing.

        Raises:
            ScheduleError: it does not fit the number of layers.
        """
        states = schedule.resolve(self.num_layers)
        left = dict(self.own_costs.full)
        for op in self.candidates:
            rows: Rows | None = getattr(states[op.layer], op.kind)
            if rows is not None:
                left[op] = self.costs[rows].left[op]
        return Contender(name, asked, 1 - sum(left.values()) / self.own_costs.dense, schedule)

    def plain(self, method: str, asked: float, seeds: int) -> list[Contender]:
        """What needs no calibration; empty where the method can't save so much."""
        if method in ("fastv", "vtw"):
            found = self._dropping(method, asked)
            return [] if found is None else [Contender(method, asked, self._saved(found), dropping=found)]
        if method == "late":
            layers = units_of(self.candidates, "layer")
            paths = [[frozenset().union(*layers[len(layers) - n :]) for n in range(len(layers) + 1)]]
        else:
            paths = [at_random(units_of(self.candidates, "operator"), seed) for seed in range(seeds)]
        most = self.own_costs.dense * (1 - asked)
        sets = [cheapest(path, self.own_costs, most) for path in paths]
        return [
            replace(
                self.given(method, as_schedule(skipped, self.rows), asked), seed=seed if method == "random" else None
            )
            for seed, skipped in enumerate(sets)
            if skipped is not None
        ]

    def _dropping(self, method: str, asked: float) -> Dropping | None:
        """VTW-like: all visual rows leave, as late as will do. FastV-like: as few as will do leave at its layer."""
        if self.geometry is None:
            return None
        if method == "vtw":
            made = [Dropping(layer, 1.0) for layer in range(self.num_layers - 1, -1, -1)]
        else:
            most = max(prompt.visual for prompt in self.prompts)
            made = [Dropping(FASTV_LAYER, n / most) for n in range(1, most + 1)] if self.num_layers > 2 else []
        return next((dropping for dropping in made if self._saved(dropping) >= asked), None)

    def _saved(self, dropping: Dropping) -> float:
        assert self.geometry is not None
        geometry = self.geometry
        counted = [dropping.flops(geometry, p.visual, p.all - p.visual) for p in self.prompts]
        return 1 - statistics.fmean(counted) / self.own_costs.dense


def line_up(
    field: Field,
    methods: Sequence[str],
    cuts: Sequence[float],
    given: Sequence[tuple[str, Schedule]],
    seeds: int,
    calibrated: Callable[[str, float], Schedule],
) -> list[Contender]:
    """The dense model, the schedules that were given, and every method at every cut that it can reach.

    Args:
        calibrated: the schedule of a method of `CALIBRATED` for a cut.
    """
    found = [Contender(DENSE, None, 0.0, Schedule())]
    found += [field.given(name, schedule) for name, schedule in given]
    for cut in cuts:
        for method in methods:
            if method in CALIBRATED:
                found.append(field.given(method, calibrated(method, cut), cut))
            else:
                found += field.plain(method, cut, seeds)
    return found
