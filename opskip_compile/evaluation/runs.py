"""The runs of an evaluation: each method at each cut, as a schedule, as token dropping, or as both.

A method is asked for a share of the FLOPs and gives the least that reaches it, so each of them says what it really cut.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opskip_compile.calibration.batches import PromptRows
from opskip_compile.calibration.costs import FlopsCosts, formula_costs
from opskip_compile.calibration.operator_sets import OperatorId, all_operators, as_schedule
from opskip_compile.calibration.search import at_random, cheapest, last_layers, units_of
from opskip_compile.errors import OptionError, ScheduleError
from opskip_compile.evaluation.methods import CALIBRATED, COMBINED, DENSE, DROPPING, FASTV_LAYER
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.left_out import LeftOut, Rows
from opskip_compile.schedule.modalities import VISUAL, in_words
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.timing.dropping import Dropping


@dataclass(frozen=True)
class Split:
    """One way to share a cut between pruned tokens and skipped operators, on the calibration prompts.

    Attributes:
        spec: what it does, in full.
        cut: share of the FLOPs of the questions' prompts that it saves.
        divergence: KL(dense || both) in nats, the mean over the answer rows and then over the prompts.
        agreement: share of the prompts with the dense model's most likely token in every answer row.
    """

    spec: str
    cut: float
    divergence: float
    agreement: float


@dataclass(frozen=True)
class EvaluationRun:
    """One way to answer all questions.

    Attributes:
        method: of `METHODS`, ``"dense"``, or the name of a schedule of the user's.
        asked: share of FLOPs to save; None where none was asked for.
        cut: share that it saves, the mean over the prompts.
        schedule: what it skips; None for token dropping alone.
        dropping: which rows leave; None for a schedule alone. With both, rows leave before the decoder, and operators
            leave out visual rows that stay.
        seed: of a random choice.
        levels: how many prompts took each level of the schedule.
        splits: with both, the ways to share the cut that were tried.
    """

    method: str
    asked: float | None
    cut: float
    schedule: Schedule | None = None
    dropping: Dropping | None = None
    seed: int | None = None
    levels: tuple[int, ...] = ()
    splits: tuple[Split, ...] = ()

    @property
    def name(self) -> str:
        """For messages and tables."""
        asked = "" if self.asked is None else f" {self.asked:.1%}"
        return f"{self.method}{asked}" + ("" if self.seed is None else f" #{self.seed}")

    @property
    def calibration(self) -> Any:
        """What its levels did on the prompts that they were fitted to, beside hindsight; None if not known."""
        return None if self.schedule is None else self.schedule.provenance.get("calibration")

    @property
    def spec(self) -> str:
        """What it does, in full: one text for one thing to do."""
        parts = []
        if self.dropping is not None:
            how = "" if self.dropping.by == "attention" else f", {self.dropping.by} {self.dropping.seed}"
            leaving = f"{self.dropping.share!r} of the visual rows leave before layer {self.dropping.layer}"
            parts.append(leaving + how)
        if self.schedule is not None:
            parts.append(self.schedule.to_spec() + (f" by {self.schedule.digest}" if self.schedule.levels else ""))
        return "; then ".join(parts)


@dataclass(frozen=True)
class EvaluationSetup:
    """What the runs share: the prompts and what operators cost in them.

    Attributes:
        costs: of `flops_costs`, with the operators that the compiler can skip.
        prompts: rows of each.
        geometry: of the decoder; None where the formula of FLOPs does not apply, and then no tokens can be dropped.
        rows, modalities: the row set of the methods' schedules, and whose rows they are.
    """

    costs: FlopsCosts
    prompts: Sequence[PromptRows]
    geometry: Geometry | None
    num_layers: int
    rows: Rows
    modalities: tuple[str, ...] = VISUAL

    def schedule_run(self, name: str, schedule: Schedule, asked: float | None = None) -> EvaluationRun:
        """The run of a schedule; what the compiler leaves full saves nothing. With levels, at the deepest of them.

        Raises:
            ScheduleError: it does not fit the number of layers, or means rows of other modalities.
        """
        if schedule.modalities != self.modalities:
            raise ScheduleError(
                f"modalities: schedule {name!r} means rows of {in_words(schedule.modalities)}, the evaluation those of "
                f"{in_words(self.modalities)}"
            )
        left = self.costs.leaving_out(self._left_out(schedule))
        return EvaluationRun(name, asked, 1 - left / self.costs.dense, schedule)

    def pruned_run(self, method: str, schedule: Schedule, asked: float) -> EvaluationRun | None:
        """A schedule, and as few tokens pruned before the decoder as will do; None where that can't be counted or where
        not even one visual row of the longest prompt would stay.

        Where rows that are left out reach through the last visual row, this is counted as if that one stayed.
        """
        if self.geometry is None or not self.costs.by_formula:
            return None
        left_out, geometry = self._left_out(schedule), self.geometry
        most = max(prompt.visual for prompt in self.prompts)

        def saved(count: int) -> float:
            dropping = Dropping(0, count / most, "diverse")
            prompts = [prompt.pruned(dropping.kept(prompt.visual)) for prompt in self.prompts]
            costs = formula_costs(geometry, prompts, self.costs.whole, self.costs.partial, self.costs.rows)
            return 1 - costs.leaving_out(left_out) / self.costs.dense

        count = bisect_left(range(1, most), asked, key=saved) + 1
        if count == most:
            return None
        return EvaluationRun(method, asked, saved(count), schedule, Dropping(0, count / most, "diverse"))

    def _left_out(self, schedule: Schedule) -> dict[OperatorId, LeftOut]:
        states = schedule.resolve(self.num_layers)
        rows = {op: getattr(states[op.layer], op.kind) for op in all_operators(self.num_layers)}
        return {op: left_out for op, left_out in rows.items() if left_out is not None}

    def with_levels(self, run: EvaluationRun, levels: Sequence[int]) -> EvaluationRun:
        """The run with the cut of the levels that its prompts took; the same without levels.

        Where the compiler could tell no level, operators that depend on it were full.
        """
        if run.schedule is None or not run.schedule.levels:
            return run
        if not levels:
            fixed = {op: rows for op, rows in self._left_out(run.schedule).items() if not rows.shares}
            return replace(run, cut=1 - self.costs.leaving_out(fixed) / self.costs.dense)
        costs = self.costs.of_levels([self._left_out(level) for level in run.schedule.levels])
        cuts = [1 - cost / self.costs.dense for cost in costs]
        counts = tuple(levels.count(level) for level in range(len(cuts)))
        return replace(run, cut=statistics.fmean(cuts[level] for level in levels), levels=counts)

    def uncalibrated_runs(self, method: str, asked: float, seeds: int) -> list[EvaluationRun]:
        """The runs of a method that needs no calibration; none where the method can't save so much."""
        if method in DROPPING:
            dropping = self._dropping(method, asked)
            if dropping is None:
                return []
            run = EvaluationRun(method, asked, self._saved(dropping), dropping=dropping)
            if dropping.by != "random":
                return [run]
            return [replace(run, dropping=replace(dropping, seed=seed), seed=seed) for seed in range(seeds)]
        if method == "late":
            paths = [last_layers(self.costs.candidates())]
        else:
            paths = [at_random(units_of(self.costs.candidates(), "operator"), seed) for seed in range(seeds)]
        most = self.costs.dense * (1 - asked)
        sets = [cheapest(path, self.costs, most) for path in paths]
        return [
            replace(
                self.schedule_run(method, as_schedule(skipped, self.rows, modalities=self.modalities), asked),
                seed=seed if method == "random" else None,
            )
            for seed, skipped in enumerate(sets)
            if skipped is not None
        ]

    def _dropping(self, method: str, asked: float) -> Dropping | None:
        """VTW-like: all visual rows leave, as late as will do. Others: as few of them as will do leave."""
        if self.geometry is None:
            return None
        if method == "vtw":
            choices = [Dropping(layer, 1.0) for layer in range(self.num_layers - 1, -1, -1)]
        elif method == "fastv" and self.num_layers <= FASTV_LAYER:
            choices = []
        else:
            most = max(prompt.visual for prompt in self.prompts)
            layer, by = DROPPING[method]
            choices = [Dropping(layer, n / most, by) for n in range(1, most + 1)]
        return next((dropping for dropping in choices if self._saved(dropping) >= asked), None)

    def _saved(self, dropping: Dropping) -> float:
        assert self.geometry is not None
        geometry = self.geometry
        counted = [dropping.flops(geometry, p.visual, p.all - p.visual) for p in self.prompts]
        return 1 - statistics.fmean(counted) / self.costs.dense


def all_runs(
    setup: EvaluationSetup,
    methods: Sequence[str],
    cuts: Sequence[float],
    schedules: Mapping[str, Schedule],
    seeds: int,
    calibrated: Callable[[str, float], Schedule],
    combined: Callable[[str, float], EvaluationRun | None],
) -> list[EvaluationRun]:
    """The dense model, the user's schedules, and every method at every cut that it can reach.

    Args:
        schedules: by name.
        seeds: how many random choices.
        calibrated: the schedule of a method of `CALIBRATED` for a cut.
        combined: the run of a method of `COMBINED` for a cut, None where it can't save so much.
    """
    runs = [EvaluationRun(DENSE, None, 0.0, Schedule(modalities=setup.modalities))]
    runs += [setup.schedule_run(name, schedule) for name, schedule in schedules.items()]
    for cut in cuts:
        for method in methods:
            if method in CALIBRATED:
                runs.append(setup.schedule_run(method, calibrated(method, cut), cut))
            elif method in COMBINED:
                runs += filter(None, [combined(method, cut)])
            else:
                runs += setup.uncalibrated_runs(method, cut, seeds)
    return runs


def check_reach(setup: EvaluationSetup, methods: Sequence[str], cuts: Sequence[float]) -> None:
    """Check that the cuts can be reached.

    Raises:
        OptionError: not even with everything skipped.
    """
    most = setup.costs.cut(setup.costs.candidates())
    for cut in cuts if methods else ():
        if cut > most:
            raise OptionError(f"cuts: {cut:.1%} can't be met: with all operators skipped {most:.1%} are saved")


def out_of_reach(runs: Sequence[EvaluationRun], methods: Sequence[str], cuts: Sequence[float]) -> list[str]:
    """Methods that can't reach a cut, as messages."""
    there = {(run.method, run.asked) for run in runs}
    return [
        f"{method} {cut:.1%}: it can't save so much" for cut in cuts for method in methods if (method, cut) not in there
    ]
