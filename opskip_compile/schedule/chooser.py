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
_GOLDEN = 0.6180339887498949


def sign(column: int) -> float:
    """The sign with which a column of an embedding is added to its bucket, ``column % BUCKETS``.

    1 or -1 by the fractional part of ``column + 1`` times the golden ratio: feature hashing (arXiv 0902.2206) with a
    sequence in place of a hash, so that a chooser is as small for wide models as for narrow ones.
    """
    return 1.0 if (column + 1) * _GOLDEN % 1 < 0.5 else -1.0


@dataclass(frozen=True)
class Chooser:
    """Chooses the deepest level whose guess is at most ``threshold``, and the first one if there is none.

    The guess of a level is ``bias + sum(weights * features)``: the logarithm of its divergence in nats, if a
    calibration made it. The features of a prompt are two means of what enters the first layer, that of its text rows
    without padding and that of its visual rows, each added up in `BUCKETS` buckets (see `sign`).

    Attributes:
        weights: for each level ``2 * BUCKETS`` numbers, those of the text rows first.
        bias: a number for each level.
        threshold: the highest guess of a level that is taken.
    """

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    threshold: float

    def __post_init__(self) -> None:
        rows = tables.check_list(self.weights, "weights", most=MAX_LEVELS)
        weights = tuple(_numbers(row, f"weights[{i}]", 2 * BUCKETS) for i, row in enumerate(rows))
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "bias", _numbers(self.bias, "bias", len(weights)))
        object.__setattr__(self, "threshold", _number(self.threshold, "threshold"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Chooser:
        """Read what `to_dict` writes.

        Raises:
            ScheduleError: anything else; names the field.
        """
        known = ("weights", "bias", "threshold")
        tables.check_keys(data, "", known, required=known)
        return cls(data["weights"], data["bias"], data["threshold"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "weights": [list(row) for row in self.weights],
            "bias": list(self.bias),
            "threshold": self.threshold,
        }

    def choose(self, features: Sequence[float]) -> int:
        """The level for these features, ``2 * BUCKETS`` numbers."""
        guesses = [
            bias + sum(w * x for w, x in zip(row, features, strict=True))
            for row, bias in zip(self.weights, self.bias, strict=True)
        ]
        return max((level for level, guess in enumerate(guesses) if guess <= self.threshold), default=0)


def _numbers(value: object, field: str, count: int) -> tuple[float, ...]:
    found = tables.check_list(value, field)
    if len(found) != count:
        raise ScheduleError(f"{field}: expected {count} numbers, got {len(found)}")
    return tuple(_number(each, f"{field}[{i}]") for i, each in enumerate(found))


def _number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ScheduleError(f"{field}: expected a number, got {show(value)}")
    return float(value)
