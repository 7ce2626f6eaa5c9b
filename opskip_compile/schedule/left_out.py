"""Which rows a skipped operator leaves out: a row set, less the share of it that the operator still updates."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast

from opskip_compile.errors import ScheduleError
from opskip_compile.schedule import validation as tables
from opskip_compile.schedule.validation import show

Rows = Literal["visual", "through_visual"]
ROWS: tuple[Rows, ...] = ("visual", "through_visual")
DECIMALS = 6  # of a keep share, so that its part of a number of rows is exact
PROBES = 16  # text rows whose attention says which rows are critical, at most

_SHARE = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?")


@dataclass(frozen=True, order=True)
class LeftOut:
    """The rows that an operator leaves out.

    Attributes:
        rows: the row set, of each element of the batch: its visual rows, or every row up to its last visual one.
        keep: the share of the set that the operator updates all the same, 0 to 1: its rows with the highest score.
    """

    rows: Rows = "visual"
    keep: float = 0.0

    def __post_init__(self) -> None:
        tables.check_choice(self.rows, ROWS, "rows")
        object.__setattr__(self, "keep", check_share(self.keep))

    @classmethod
    def parse(cls, text: str) -> LeftOut:
        """Read what `str` writes: ``visual``, ``keep=0.25``, ``through_visual,keep=0.25``; empty text is ``visual``."""
        rows: str | None = None
        keep: float | None = None
        for part in text.split(",") if text else ():
            name, equals, share = part.partition("=")
            if equals and name == "keep" and keep is None:
                if not _SHARE.fullmatch(share):
                    raise ScheduleError(f"keep: expected a number from 0 to 1, got {show(share)}")
                keep = float(share)
            elif rows is None and part in ROWS:
                rows = part
            else:
                raise ScheduleError(f"rows: expected one of {', '.join(ROWS)}, and keep=SHARE, got {show(text)}")
        return cls(cast(Rows, rows or "visual"), keep or 0.0)

    def __str__(self) -> str:
        return f"{self.rows},keep={self.keep:.{DECIMALS}g}" if self.keep else self.rows

    @property
    def suffix(self) -> str:
        """What follows the state in spec text: empty, ``@keep=0.25``, ``@through_visual,keep=0.25``."""
        parts: list[str] = [self.rows] if self.rows != "visual" else []
        parts += [f"keep={self.keep:.{DECIMALS}g}"] if self.keep else []
        return "@" + ",".join(parts) if parts else ""

    def critical(self, count: int) -> int:
        """How many of ``count`` rows of the set are updated all the same: ``ceil(keep * count)``, exactly."""
        return -int(-Fraction(repr(self.keep)) * count // 1)


def check_share(value: object) -> float:
    """A share from 0 to 1 of at most `DECIMALS` decimals; refused with the name of its field."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ScheduleError(f"keep: expected a number from 0 to 1, got {show(value)}")
    if round(float(value), DECIMALS) != float(value):
        raise ScheduleError(f"keep: at most {DECIMALS} decimals, got {show(value)}")
    return float(value) + 0.0  # -0.0 becomes 0.0
