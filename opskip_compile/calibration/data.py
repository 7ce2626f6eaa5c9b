"""What a calibration found, as plain data: the schedule, the evidence for it, and what it took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opskip_compile.calibration.budget import amount
from opskip_compile.calibration.divergence_meter import Measured
from opskip_compile.calibration.operator_sets import OperatorId, Skipped, as_schedule, kept_shares, spec_text
from opskip_compile.calibration.scores import Scores
from opskip_compile.schedule.left_out import Rows
from opskip_compile.schedule.schedule import Schedule


@dataclass(frozen=True)
class Quality:
    """A set of skipped operators on some samples.

    Attributes:
        divergence: joint KL(dense || skipped) at the answer rows, nats, the mean over the samples.
        error: its standard error.
        turned: 1 - cosine of the residual streams behind the last layer, at the answer rows, the mean over the samples.
        agreement: share of samples whose greedy answer is the dense model's.
        samples: how many.
    """

    divergence: float
    error: float
    turned: float
    agreement: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return vars(self).copy()


def quality_of(measured: Measured) -> Quality:
    """Of what was measured."""
    return Quality(
        measured.mean,
        measured.error,
        statistics.fmean(measured.turned),
        measured.agreement,
        len(measured.agrees),
    )


@dataclass(frozen=True)
class Choice:
    """A usable schedule with what it saves and what it does.

    Attributes:
        skipped: the operators, by steps down to the share that each of them keeps.
        schedule: the same as a `Schedule`.
        cut: share of the prefill FLOPs that it saves.
        cost: in the unit of the budget.
        calibration, heldout: on the samples that it was chosen by, and on others; None where it was not measured.
    """

    skipped: Skipped = field(repr=False)
    schedule: Schedule
    cut: float
    cost: float
    calibration: Quality | None
    heldout: Quality | None

    @property
    def kept(self) -> dict[OperatorId, float]:
        """The skipped operators, and the share of their visual rows that each still updates."""
        return kept_shares(self.skipped)

    @property
    def judged(self) -> Quality | None:
        """The one to judge it by: on held-out samples where there are any."""
        return self.heldout or self.calibration

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "spec": self.schedule.to_spec(),
            "flops_cut": self.cut,
            "cost": self.cost,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "heldout": None if self.heldout is None else self.heldout.to_dict(),
        }


@dataclass(frozen=True)
class LevelChoice:
    """Levels that a chooser took on some samples.

    Attributes:
        cut: share of the FLOPs that they save, the mean over the samples.
        counts: how many samples took each level.
        quality: what it does to them.
        hindsight: what the best choice would do at the same mean cut, by the divergences themselves.
    """

    cut: float
    counts: tuple[int, ...]
    quality: Quality
    hindsight: Quality

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "flops_cut": self.cut,
            "counts": list(self.counts),
            "quality": self.quality.to_dict(),
            "hindsight": self.hindsight.to_dict(),
        }


@dataclass(frozen=True)
class Levels:
    """A schedule with a level for every prompt.

    Attributes:
        schedule: with its levels and chooser.
        calibration, heldout: what it does to the samples that it was made by, and to others; None without such.
    """

    schedule: Schedule
    calibration: LevelChoice
    heldout: LevelChoice | None

    @property
    def judged(self) -> LevelChoice:
        """The one to judge it by: on held-out samples where there are any."""
        return self.heldout or self.calibration

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "specs": [level.to_spec() for level in self.schedule.levels],
            "calibration": self.calibration.to_dict(),
            "heldout": None if self.heldout is None else self.heldout.to_dict(),
        }


@dataclass(frozen=True)
class Stability:
    """Separate searches on two disjoint halves of the samples.

    Attributes:
        first, second: what each half chose.
        overlap: operators in both by operators in either (Jaccard index).
        rank_correlation: Spearman's, of the scores of the two halves.
    """

    first: Skipped
    second: Skipped
    overlap: float
    rank_correlation: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "first": spec_text(self.first),
            "second": spec_text(self.second),
            "overlap": self.overlap,
            "rank_correlation": self.rank_correlation,
        }


@dataclass(frozen=True)
class Spent:
    """What the calibration itself took in this run: ``flops`` are those of the decoders that ran, without the vision
    tower and the head; what a journal knew already is not in it."""

    seconds: float
    flops: float
    dense_prefills: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return vars(self).copy()


@dataclass(frozen=True)
class CalibrationData:
    """What a calibration measured and chose.

    Attributes:
        chosen: the schedule under the budget.
        scores: what leaving each operator out is expected to cost, before the search.
        front: Pareto front of cut against divergence on the calibration samples, the smallest cut first; every point
            is a usable schedule.
        controls: by name, choices made in other ways: without shares, by whole layers, at random, the last layers.
        stability: None with fewer than four items.
        full: operators that the compiler leaves full.
        without_shares: operators that the compiler can skip, but not but for a share; none if no shares were tried.
        num_layers: of the decoder.
        unit, dense_cost: what costs are measured in, and the cost of the dense model.
        about: the settings and what the numbers depend on, as in the schedule's provenance.
        spent: time and FLOPs.
        levels: a level for every prompt; None if they were not asked for. Then ``chosen`` is what one schedule for all
            of them would do.
    """

    chosen: Choice
    scores: Scores
    front: tuple[Choice, ...]
    controls: Mapping[str, tuple[Choice, ...]]
    stability: Stability | None
    full: tuple[str, ...]
    without_shares: tuple[str, ...]
    num_layers: int
    unit: str
    dense_cost: float
    about: Mapping[str, Any]
    spent: Spent
    levels: Levels | None = None

    @property
    def schedule(self) -> Schedule:
        """The chosen schedule, or that with levels, with its provenance."""
        return self.chosen.schedule if self.levels is None else self.levels.schedule

    @property
    def report(self) -> dict[str, Any]:
        """Everything as plain data for JSON."""
        return {
            "schedule": self.schedule.to_dict(),
            "chosen": self.chosen.to_dict(),
            "unit": self.unit,
            "dense_cost": self.dense_cost,
            "scores": self.scores.to_dict(),
            "front": [choice.to_dict() for choice in self.front],
            "controls": {name: [c.to_dict() for c in choices] for name, choices in self.controls.items()},
            "stability": None if self.stability is None else self.stability.to_dict(),
            "left_full_by_the_compiler": list(self.full),
            "without_shares": list(self.without_shares),
            "num_layers": self.num_layers,
            "about": dict(self.about),
            "spent": self.spent.to_dict(),
            "levels": None if self.levels is None else self.levels.to_dict(),
        }

    def __str__(self) -> str:
        lines = [
            f"schedule {self.chosen.schedule.to_spec()}",
            f"{self.chosen.cut:.1%} fewer FLOPs; {amount(self.dense_cost, self.unit)} -> "
            f"{amount(self.chosen.cost, self.unit)}",
        ]
        for name, quality in (("calibration", self.chosen.calibration), ("held out", self.chosen.heldout)):
            if quality is not None:
                lines.append(
                    f"{name}: KL {quality.divergence:.3g} +- {quality.error:.1g} nats, "
                    f"same answer {quality.agreement:.1%} of {quality.samples}"
                )
        if self.levels is not None:
            lines += _level_lines(self.levels)
        for name, choices in self.controls.items():
            lines += [f"{name}: {line}" for line in _control_lines(self.chosen, choices)]
        if self.stability is not None:
            lines.append(f"halves of the samples: {self.stability.overlap:.0%} of the operators in both")
        if self.full:
            lines.append(f"left full by the compiler: {', '.join(self.full)}")
        if self.without_shares:
            lines.append(f"the compiler can keep no share of: {', '.join(self.without_shares)}")
        lines.append(
            f"took {self.spent.seconds:.0f} s, {amount(self.spent.flops, 'FLOPs')} "
            f"({self.spent.dense_prefills:.0f} dense prefills a sample)"
        )
        return "\n".join(lines)


def _level_lines(levels: Levels) -> list[str]:
    """What a level for every prompt does, beside hindsight."""
    taken = levels.judged
    where = "calibration" if levels.heldout is None else "held out"
    specs = zip(taken.counts, (level.to_spec() for level in levels.schedule.levels), strict=True)
    return [
        f"with a level for each prompt, {where}: {taken.cut:.1%} fewer FLOPs, KL {taken.quality.divergence:.3g} +- "
        f"{taken.quality.error:.1g} nats, same answer {taken.quality.agreement:.1%} of {taken.quality.samples}; "
        f"in hindsight KL {taken.hindsight.divergence:.3g}, {taken.hindsight.agreement:.1%}",
        *(f"  level {i}, {count} prompts: {spec}" for i, (count, spec) in enumerate(specs)),
    ]


def _control_lines(chosen: Choice, choices: tuple[Choice, ...]) -> list[str]:
    """The controls that cost nearest to what was chosen."""
    if not choices:
        return []
    nearest = min(abs(choice.cut - chosen.cut) for choice in choices)
    alike = [c for c in choices if abs(c.cut - chosen.cut) <= nearest + 0.02]
    qualities = [q for q in (c.judged for c in alike) if q is not None]
    if not qualities:
        return []
    cut = sum(c.cut for c in alike) / len(alike)
    kl = sum(q.divergence for q in qualities) / len(qualities)
    same = sum(q.agreement for q in qualities) / len(qualities)
    runs = f", mean of {len(alike)}" if len(alike) > 1 else ""
    return [f"{cut:.1%} fewer FLOPs, KL {kl:.3g}, same answer {same:.1%}{runs}"]


def choice_of(skipped: Skipped, rows: Rows, cut: float, cost: float, *qualities: Quality | None) -> Choice:
    """A choice with a bare schedule; the qualities are those on calibration and held-out samples."""
    return Choice(skipped, as_schedule(skipped, rows), cut, cost, *qualities)
