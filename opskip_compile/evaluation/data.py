"""What an evaluation measured, as plain data: one outcome for every method at every cut."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opskip_compile.evaluation.measures import Interval, Intervals, TaskRows, accuracies, bootstrap, retained
from opskip_compile.evaluation.methods import DENSE
from opskip_compile.evaluation.runs import EvaluationRun, Split
from opskip_compile.evaluation.speed import Speed


@dataclass(frozen=True)
class MethodOutcome:
    """One method at one cut; of random choices the mean over the seeds.

    Attributes:
        runs: the runs behind it.
        cut: share of the FLOPs that it saves.
        by_task: accuracy, 0 to 1.
        retained: mean over the tasks of accuracy / dense accuracy; None if the dense model has no right answer.
        worst, best: the same of the single runs; equal to it where there is one.
        agreement: share of the questions with the dense model's answer.
        intervals: of accuracy and retained share, 95 %.
        speed: None where it was not measured.
    """

    runs: tuple[EvaluationRun, ...]
    cut: float
    by_task: Mapping[str, float]
    retained: float | None
    worst: float | None
    best: float | None
    agreement: float
    intervals: Intervals
    speed: Speed | None

    @property
    def method(self) -> str:
        """Its name."""
        return self.runs[0].method

    @property
    def asked(self) -> float | None:
        """Share of FLOPs that it was asked to save."""
        return self.runs[0].asked

    @property
    def accuracy(self) -> float:
        """Mean over the tasks."""
        return statistics.fmean(self.by_task.values())

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON."""
        return {
            "method": self.method,
            "asked": self.asked,
            "flops_cut": _short(self.cut),
            "accuracy": _short(self.accuracy),
            "accuracy_interval": _bounds(self.intervals.accuracy),
            "retained": _short(self.retained),
            "retained_interval": _bounds(self.intervals.retained),
            "retained_of_runs": [_short(self.worst), _short(self.best)],
            "agreement": _short(self.agreement),
            "by_task": {task: _short(value) for task, value in self.by_task.items()},
            "speedup": None if self.speed is None else {k: _short(v) for k, v in vars(self.speed).items()},
            "runs": [
                {
                    "spec": c.spec,
                    "seed": c.seed,
                    "flops_cut": _short(c.cut),
                    **({"levels": list(c.levels), "calibration": c.calibration} if c.levels else {}),
                    **({"splits": [{**vars(s), **_shortened(s)} for s in c.splits]} if c.splits else {}),
                }
                for c in self.runs
            ],
        }


@dataclass(frozen=True)
class EvaluationData:
    """What an evaluation measured.

    Attributes:
        outcomes: the dense model first.
        tasks: how many questions and images each of them has.
        about: the model, the data and the settings.
        missing: what was asked for and is not there, with the reason.
    """

    outcomes: tuple[MethodOutcome, ...]
    tasks: Mapping[str, tuple[int, int]]
    about: Mapping[str, Any]
    missing: tuple[str, ...]

    @property
    def dense(self) -> MethodOutcome:
        """That of the dense model."""
        return self.outcomes[0]

    def of(self, method: str, asked: float | None = None) -> MethodOutcome:
        """That of one method at one cut. Raises `KeyError` if there is none."""
        for outcome in self.outcomes:
            if (outcome.method, outcome.asked) == (method, asked):
                return outcome
        raise KeyError((method, asked))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON."""
        return {
            "about": dict(self.about),
            "tasks": {task: {"questions": q, "images": i} for task, (q, i) in self.tasks.items()},
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
            "missing": list(self.missing),
        }


def outcome_of(
    runs: Sequence[EvaluationRun],
    right: Sequence[Sequence[float]],
    same: Sequence[float],
    dense: Sequence[float],
    tasks: Mapping[str, TaskRows],
    speed: Speed | None,
    resamples: int,
    seed: int,
) -> MethodOutcome:
    """The figures of one method at one cut.

    Args:
        runs: of this method at this cut.
        right: for each run 1 or 0 for every question.
        same: for each run the share of answers that are the dense model's.
        dense: 1 or 0 for every question, of the dense model.
    """
    mean = [statistics.fmean(values) for values in zip(*right, strict=True)]
    dense_accuracies = accuracies(dense, tasks)
    of_runs = [retained(accuracies(run, tasks), dense_accuracies) for run in right]
    known = [value for value in of_runs if value is not None]
    by_task = accuracies(mean, tasks)
    return MethodOutcome(
        tuple(runs),
        statistics.fmean(c.cut for c in runs),
        by_task,
        retained(by_task, dense_accuracies),
        min(known, default=None),
        max(known, default=None),
        statistics.fmean(same),
        bootstrap(mean, dense, tasks, resamples, seed),
        speed,
    )


def is_dense(outcome: MethodOutcome) -> bool:
    """True for the one that the others are compared with."""
    return outcome.method == DENSE


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _shortened(split: Split) -> dict[str, float | None]:
    return {name: _short(getattr(split, name)) for name in ("cut", "divergence", "agreement")}


def _bounds(value: Interval | None) -> list[float | None] | None:
    return None if value is None else [_short(value.low), _short(value.high)]
