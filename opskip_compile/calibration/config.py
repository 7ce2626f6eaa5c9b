"""How to calibrate: everything that `calibrate` can be told beside the model and its samples, checked at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import TypedDict

from opskip_compile.calibration.budget import Budget
from opskip_compile.calibration.divergence_meter import KEPT_BYTES
from opskip_compile.calibration.option_checks import (
    check_choice,
    check_count,
    check_flag,
    check_path,
    checked_modalities,
)
from opskip_compile.calibration.scores import METHODS
from opskip_compile.errors import OptionError, ScheduleError
from opskip_compile.schedule.chooser import MAX_LEVELS
from opskip_compile.schedule.left_out import ROWS, Rows, check_share
from opskip_compile.schedule.modalities import VISUAL

SHARES = (0.1, 0.25, 0.5)
LEVELS, SEARCHES = ("operator", "layer"), ("joint", "scores", "depth")


class CalibrationOptions(TypedDict, total=False):
    """The fields of `CalibrationConfig` as keywords of `calibrate`, which has ``budget`` as a parameter of its own."""

    method: str
    level: str
    search: str
    rows: Rows
    modalities: Sequence[str] | str
    shares: Sequence[float]
    levels: int
    search_samples: int | None
    holdout: float
    seed: int
    batch: int
    answer_tokens: int
    refresh: int
    controls: bool
    stability: bool
    whole_front: bool
    resume: str | os.PathLike[str] | None
    kept_bytes: int


@dataclass(frozen=True)
class CalibrationConfig:
    """How `opskip_compile.calibrate` goes about it.

    Attributes:
        budget: what `Budget.of` takes: a share of the prefill FLOPs to save, FLOPs or milliseconds that it may take, or
            the divergence to stay below.
        method: how operators are scored before the search, one of ``scores.METHODS``: ``probe``, ``first_order``,
            ``fisher`` or the control ``update_norm``.
        level: choose ``"operator"`` by operator, or whole ``"layer"`` s.
        search: ``"joint"`` measures sets as they grow; ``"scores"`` goes by the scores alone, and
            ``"depth"`` by their sums, skipping each kind of operator from some layer on (DOP, arXiv 2507.02909).
        rows: the row set that skipped operators leave out.
        modalities: whose rows these are, as of `Schedule`: the schedule that is found means them.
        shares: of its rows that an operator may keep, its critical ones, besides all and none; empty for none.
        levels: schedules from full to deep, of which every prompt takes one; 1 is one schedule for all of them.
        search_samples: how many samples at most the search looks at, evenly spread; all that are not held out if not
            given. Levels are fitted to all of them, and want some hundreds.
        holdout: share of the items that have no part in the choice; the result is measured on them.
        seed: of the split, of random directions and of the random controls.
        batch: prompts to a forward pass, of a JSONL file.
        answer_tokens: of a greedy answer, at most.
        refresh: operators that are measured again before each step of the search.
        controls: also choose by whole layers, at random (10 times) and the last layers, to compare with.
        stability: also search on two halves of the samples.
        whole_front: go on beyond the budget until everything is skipped.
        resume: a file to keep measurements in. A calibration that was interrupted, or one with another budget or method
            on the same samples, goes on with what is in it.
        kept_bytes: memory for recorded forward passes; beyond it they are run again for each pass over the samples.

    Raises:
        OptionError: a bad value; names the field.
    """

    budget: Budget | float | str = 0.337
    method: str = "probe"
    level: str = "operator"
    search: str = "joint"
    rows: Rows = "visual"
    modalities: Sequence[str] | str = VISUAL
    shares: Sequence[float] = SHARES
    levels: int = 1
    search_samples: int | None = None
    holdout: float = 0.25
    seed: int = 0
    batch: int = 1
    answer_tokens: int = 16
    refresh: int = 8
    controls: bool = True
    stability: bool = True
    whole_front: bool = True
    resume: str | os.PathLike[str] | None = None
    kept_bytes: int = KEPT_BYTES

    def __post_init__(self) -> None:
        Budget.of(self.budget)
        check_choice("method", self.method, METHODS)
        check_choice("level", self.level, LEVELS)
        check_choice("search", self.search, SEARCHES)
        check_choice("rows", self.rows, ROWS)
        object.__setattr__(self, "modalities", checked_modalities(self.modalities))
        object.__setattr__(self, "shares", _checked_shares(self.shares))
        if isinstance(self.holdout, bool) or not isinstance(self.holdout, int | float) or not 0 <= self.holdout < 1:
            raise OptionError(f"holdout: expected a share from 0 to below 1, got {self.holdout!r}")
        check_count("levels", self.levels, 1)
        if self.search_samples is not None:
            check_count("search_samples", self.search_samples, 1)
        if self.levels > MAX_LEVELS:
            raise OptionError(f"levels: at most {MAX_LEVELS}, got {self.levels}")
        if self.levels > 1 and Budget.of(self.budget).is_latency:
            raise OptionError("levels: need a budget in FLOPs or a divergence, not in milliseconds")
        if self.levels > 1 and self.search != "joint":
            raise OptionError("levels: need search='joint'")
        for name, least in (("seed", 0), ("batch", 1), ("answer_tokens", 1), ("refresh", 1), ("kept_bytes", 0)):
            check_count(name, getattr(self, name), least)
        for name in ("controls", "stability", "whole_front"):
            check_flag(name, getattr(self, name))
        check_path("resume", self.resume)

    @property
    def target(self) -> Budget:
        """The budget, read."""
        return Budget.of(self.budget)


def _checked_shares(shares: object) -> tuple[float, ...]:
    """In order, each once. Raises `OptionError` for what is no share over 0 and below 1."""
    if isinstance(shares, str) or not isinstance(shares, Sequence):
        raise OptionError(f"shares: expected numbers over 0 and below 1, got {shares!r}")
    try:
        checked = {check_share(share) for share in shares}
    except ScheduleError as error:
        raise OptionError(f"shares: {error}") from error
    if checked & {0.0, 1.0}:
        raise OptionError("shares: expected numbers over 0 and below 1; none and all are always tried")
    return tuple(sorted(checked))
