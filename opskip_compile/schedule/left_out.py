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
        shares: where it depends on the level, the share of each of them; then ``keep`` is the smallest.
    """

    rows: Rows = "visual"
    keep: float = 0.0
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        tables.check_choice(self.rows, ROWS, "rows")
        object.__setattr__(self, "shares", tuple(check_share(share) for share in self.shares))
        object.__setattr__(self, "keep", check_share(min(self.shares, default=self.keep)))

    @classmethod
    def parse(cls, text: str) -> LeftOut:
        """Read what `str` writes, such as ``visual``, ``keep=0.25`` or ``through_visual,keep=1/0.5/0``; empty text is
        ``visual``."""
        rows: str | None = None
        keep: list[float] | None = None
        for part in text.split(",") if text else ():
            name, equals, share = part.partition("=")
            if equals and name == "keep" and keep is None:
                if not all(_SHARE.fullmatch(one) for one in share.split("/")):
                    raise ScheduleError(f"keep: expected a number from 0 to 1, got {show(share)}")
                keep = [float(one) for one in share.split("/")]
            elif rows is None and part in ROWS:
                rows = part
            else:
                raise ScheduleError(f"rows: expected one of {', '.join(ROWS)}, and keep=SHARE, got {show(text)}")
        shares = tuple(keep or [0.0])
        return cls(cast(Rows, rows or "visual"), shares[0], shares if len(shares) > 1 else ())

    def __str__(self) -> str:
        return ",".join([self.rows, *self._share])

    @property
    def chooses(self) -> bool:
        """False if it leaves out the whole set in every prompt, so that no score and no level is asked."""
        return bool(self.keep or self.shares)

    @property
    def _share(self) -> list[str]:
        shares = self.shares or (self.keep,)
        return ["keep=" + "/".join(f"{share:.{DECIMALS}g}" for share in shares)] if self.chooses else []

    @property
    def suffix(self) -> str:
        """What follows the state in spec text: empty, ``@keep=0.25``, ``@through_visual,keep=0.25``."""
        parts: list[str] = [self.rows] if self.rows != "visual" else []
        parts += self._share
        return "@" + ",".join(parts) if parts else ""

    def at(self, level: int) -> LeftOut:
        """What is left out at a level, without levels."""
        return LeftOut(self.rows, self.shares[level]) if self.shares else self

    def critical(self, count: int) -> int:
        """How many of ``count`` rows of the set are updated all the same, at the deepest level: ``ceil(keep * count)``,
        exactly."""
        return -int(-Fraction(repr(self.keep)) * count // 1)


def check_share(value: object) -> float:
    """A share from 0 to 1 of at most `DECIMALS` decimals; refused with the name of its field."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ScheduleError(f"keep: expected a number from 0 to 1, got {show(value)}")
    if round(float(value), DECIMALS) != float(value):
        raise ScheduleError(f"keep: at most {DECIMALS} decimals, got {show(value)}")
    return float(value) + 0.0  # -0.0 becomes 0.0
