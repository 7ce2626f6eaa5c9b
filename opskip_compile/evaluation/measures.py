"""From answers to figures: exact match, what is retained of the dense model's accuracy, and how sure that is.

Intervals are from a paired bootstrap (B. Efron, 1979): images are drawn with replacement within each task, with the
dense and skipped answers to all questions about them, since these are not independent.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEVEL = 0.95


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Exact match with one of the answers, but for case, blanks and a full stop at the end."""
    return _plain(text) in {_plain(answer) for answer in answers}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


@dataclass(frozen=True)
class TaskRows:
    """The questions of one task.

    Attributes:
        places: their places among all questions.
        groups: for each of them the number of its image, counted from 0.
    """

    places: tuple[int, ...]
    groups: tuple[int, ...]


def accuracies(right: Sequence[float], tasks: Mapping[str, TaskRows]) -> dict[str, float]:
    """Share of right answers by task; ``right`` is 1 or 0 for each question, or the mean over several runs."""
    return {name: statistics.fmean(right[i] for i in rows.places) for name, rows in tasks.items()}


def retained(skipped: Mapping[str, float], dense: Mapping[str, float]) -> float | None:
    """Mean over the tasks of accuracy / dense accuracy; None if the dense model answers no question of any task.

    A task without a right dense answer has nothing to retain and does not count.
    """
    shares = [skipped[task] / value for task, value in dense.items() if value > 0]
    return statistics.fmean(shares) if shares else None


@dataclass(frozen=True)
class Interval:
    """Between which bounds a figure lies in 95 of 100 resamples."""

    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """Of the mean accuracy over the tasks, and of what is retained of it."""

    accuracy: Interval
    retained: Interval | None


def bootstrap(
    skipped: Sequence[float], dense: Sequence[float], tasks: Mapping[str, TaskRows], resamples: int, seed: int
) -> Intervals:
    """Intervals of one method at one cut.

    Args:
        skipped, dense: 1 for a right answer to a question, else 0; or means over several runs.
        resamples: how many; the same draws for every method with this seed.
    """
    generator = torch.Generator().manual_seed(seed)
    accuracy, shares = [], []
    for rows in tasks.values():
        right = torch.tensor([[skipped[i], dense[i], 1.0] for i in rows.places], dtype=torch.float64)
        groups = torch.tensor(rows.groups)
        sums = torch.zeros(int(groups.max()) + 1, 3, dtype=torch.float64).index_add_(0, groups, right)
        drawn = torch.randint(len(sums), (resamples, len(sums)), generator=generator)
        total = torch.stack([sums[row].sum(0) for row in drawn])
        of_skipped, of_dense = total[:, 0] / total[:, 2], total[:, 1] / total[:, 2]
        accuracy.append(of_skipped)
        if bool(sums[:, 1].any()):
            shares.append(torch.where(of_dense > 0, of_skipped / of_dense, torch.nan))
    kept = _interval(torch.stack(shares).nanmean(0).nan_to_num(0.0)) if shares else None
    return Intervals(_interval(torch.stack(accuracy).mean(0)), kept)


def _interval(values: Tensor) -> Interval:
    out = (1 - LEVEL) / 2
    low, high = values.quantile(torch.tensor([out, 1 - out], dtype=values.dtype)).tolist()
    return Interval(low, high)
