"""How to calibrate: the options that have nothing to do with the model or the samples, checked at once."""

from __future__ import annotations

from dataclasses import dataclass

from opskip_compile.calibration.scores import check_method
from opskip_compile.errors import OptionError
from opskip_compile.schedule.schedule import ROWS, Rows

LEVELS, SEARCHES = ("operator", "layer"), ("joint", "scores")


@dataclass(frozen=True)
class Options:
    """How to calibrate; see `calibrate`."""

    method: str = "probe"
    level: str = "operator"
    search: str = "joint"
    rows: Rows = "visual"
    holdout: float = 0.25
    seed: int = 0
    refresh: int = 8
    controls: bool = True
    stability: bool = True
    whole_front: bool = True

    def __post_init__(self) -> None:
        check_method(self.method)
        for name, value, known in (
            ("level", self.level, LEVELS),
            ("search", self.search, SEARCHES),
            ("rows", self.rows, ROWS),
        ):
            if value not in known:
                raise OptionError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if isinstance(self.holdout, bool) or not isinstance(self.holdout, int | float) or not 0 <= self.holdout < 1:
            raise OptionError(f"holdout: expected a share from 0 to below 1, got {self.holdout!r}")
        for name, number, least in (("seed", self.seed, 0), ("refresh", self.refresh, 1)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise OptionError(f"{name}: expected an integer of at least {least}, got {number!r}")
