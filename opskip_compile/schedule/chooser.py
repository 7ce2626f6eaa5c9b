"""Which level a prompt takes: a linear guess of each level's divergence, from the embeddings that enter the decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opskip_compile.errors import ScheduleError
from opskip_compile.schedule import validation as tables
from opskip_compile.schedule.validation import show

BUCKETS = 64  # of the mean of the text rows, and of that of the visual rows
MAX_LEVELS = 16
MOST_GUESS = 1000.0  # of a guess: beyond it all of them are hopeless, and float64 can hold what this one gives
_GOLDEN = 0.6180339887498949


def sign(column: int) -> float:
    """The sign with which a column of an embedding is added to its bucket, ``column % BUCKETS``.

    1 or -1 by the fractional part of ``column + 1`` times the golden ratio: feature hashing (arXiv 0902.2206) with a
    sequence in place of a hash, so that a chooser is as small for wide models as for narrow ones.
    """
    return 1.0 if (column + 1) * _GOLDEN % 1 < 0.5 else -1.0


@dataclass(frozen=True)
class Chooser:
    """Chooses the level that is worth the most, less what it risks.

    The guess of a level is ``bias + sum(weights * features)``: the logarithm of its divergence in nats, if a
    calibration made it. The features of a prompt are two means of what enters the first layer, that of its text rows
    without padding and that of its visual rows, each added up in `BUCKETS` buckets (see `sign`).

    The risk is the square root of the guessed divergence, since that bounds how often an answer can change: the total
    variation of two distributions is at most ``sqrt(KL / 2)`` (Pinsker's inequality). Levels with a guess above
    ``threshold`` are not taken. Of equals the deepest is taken, and the first level if there is none.

    Attributes:
        weights: for each level ``2 * BUCKETS`` numbers, those of the text rows first.
        bias: a number for each level.
        gains: what each level is worth, in the unit of the risk: a price times the FLOPs that it saves.
        threshold: the highest guess of a level that is taken.
    """

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    gains: tuple[float, ...]
    threshold: float

    def __post_init__(self) -> None:
        rows = tables.check_list(self.weights, "weights", most=MAX_LEVELS)
        weights = tuple(_numbers(row, f"weights[{i}]", 2 * BUCKETS) for i, row in enumerate(rows))
        object.__setattr__(self, "weights", weights)
        for name in ("bias", "gains"):
            object.__setattr__(self, name, _numbers(getattr(self, name), name, len(weights)))
        object.__setattr__(self, "threshold", _number(self.threshold, "threshold"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Chooser:
        """Read what `to_dict` writes.

        Raises:
            ScheduleError: anything else; names the field.
        """
        known = ("weights", "bias", "gains", "threshold")
        tables.check_keys(data, "", known, required=known)
        return cls(*(data[name] for name in known))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "weights": [list(row) for row in self.weights],
            "bias": list(self.bias),
            "gains": list(self.gains),
            "threshold": self.threshold,
        }

    def choose(self, features: Sequence[float]) -> int:
        """The level for these features, ``2 * BUCKETS`` numbers."""
        guesses = [
            bias + sum(w * x for w, x in zip(row, features, strict=True))
            for row, bias in zip(self.weights, self.bias, strict=True)
        ]
        worth = [
            (gain - math.exp(min(guess, MOST_GUESS) / 2), level)
            for level, (gain, guess) in enumerate(zip(self.gains, guesses, strict=True))
            if guess <= self.threshold
        ]
        return max(worth, default=(0.0, 0))[1]


def deepest(levels: int, threshold: float) -> tuple[float, ...]:
    """Gains with which the deepest level is taken whose guess is at most ``threshold``."""
    return tuple(level * math.exp(min(threshold, MOST_GUESS) / 2) for level in range(levels))


def _numbers(value: object, field: str, count: int) -> tuple[float, ...]:
    found = tables.check_list(value, field)
    if len(found) != count:
        raise ScheduleError(f"{field}: expected {count} numbers, got {len(found)}")
    return tuple(_number(each, f"{field}[{i}]") for i, each in enumerate(found))


def _number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ScheduleError(f"{field}: expected a number, got {show(value)}")
    return float(value)
