"""How to evaluate: everything that `evaluate` can be told beside the model and its questions, checked at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import TypedDict

from opskip_compile.backend.settings import LOWERINGS
from opskip_compile.calibration.option_checks import check_choice, check_count, check_path, checked_modalities
from opskip_compile.errors import OptionError
from opskip_compile.evaluation.methods import CALIBRATED, COMBINED, METHODS, UNCALIBRATED
from opskip_compile.schedule.left_out import ROWS, Rows
from opskip_compile.schedule.modalities import VISUAL

CUTS = (0.2, 0.337, 0.5, 0.65)


class EvaluationOptions(TypedDict, total=False):
    """The fields of `EvaluationConfig`, as keywords of `evaluate`."""

    methods: Sequence[str] | None
    cuts: Sequence[float]
    rows: Rows
    modalities: Sequence[str] | str
    random_seeds: int
    limit: int | None
    calibration_limit: int | None
    search_samples: int | None
    batch: int
    answer_tokens: int
    lower: str
    rounds: int
    timed: str
    resamples: int
    seed: int
    resume: str | os.PathLike[str] | None


@dataclass(frozen=True)
class EvaluationConfig:
    """How `opskip_compile.evaluate` goes about it.

    Attributes:
        methods: of ``methods.METHODS``. If not given: all of them but the combined ones, which calibrate three times
            for a cut; without prompts to calibrate on those that need none; none with schedules.
        cuts: shares of the prefill FLOPs that each method is asked to save; kept in order, each once.
        rows: the row set that schedules of the methods leave out.
        modalities: whose rows these are, as of `Schedule`; token dropping drops them.
        random_seeds: runs of the method ``random``, of which the mean is reported.
        limit, calibration_limit: questions at most for each task, and prompts at most in all, evenly spread.
        search_samples: calibration prompts that searches look at, at most; levels are fitted to all of them.
        batch: prompts to a forward pass.
        answer_tokens: of an answer, at most.
        lower: ``"inductor"``, or ``"eager"`` to answer by the rewritten graphs as they are: the same rows left out,
            quicker for small models.
        rounds: of timing the prefill; 0 for no timing.
        timed: how the timed prefill is lowered; times of ``"eager"`` say nothing about Inductor.
        resamples: of the bootstrap.
        seed: of the bootstrap and the calibrations.
        resume: a folder that keeps answers and measurements; an interrupted evaluation goes on with them.

    Raises:
        OptionError: a bad value; names the field.
    """

    methods: Sequence[str] | None = None
    cuts: Sequence[float] = CUTS
    rows: Rows = "visual"
    modalities: Sequence[str] | str = VISUAL
    random_seeds: int = 3
    limit: int | None = None
    calibration_limit: int | None = 64
    search_samples: int | None = None
    batch: int = 1
    answer_tokens: int = 16
    lower: str = "inductor"
    rounds: int = 5
    timed: str = "inductor"
    resamples: int = 2000
    seed: int = 0
    resume: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.methods is not None:
            for method in self.methods:
                if method not in METHODS:
                    raise OptionError(f"methods: expected some of {', '.join(METHODS)}, got {method!r}")
            object.__setattr__(self, "methods", tuple(dict.fromkeys(self.methods)))
        for cut in self.cuts:
            if isinstance(cut, bool) or not isinstance(cut, int | float) or not 0 < cut < 1:
                raise OptionError(f"cuts: expected shares over 0 and below 1, got {cut!r}")
        object.__setattr__(self, "cuts", tuple(sorted({float(cut) for cut in self.cuts})))
        check_choice("rows", self.rows, ROWS)
        object.__setattr__(self, "modalities", checked_modalities(self.modalities))
        for name, least in (
            ("random_seeds", 1),
            ("batch", 1),
            ("answer_tokens", 1),
            ("rounds", 0),
            ("resamples", 1),
            ("seed", 0),
        ):
            check_count(name, getattr(self, name), least)
        for name in ("limit", "calibration_limit", "search_samples"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 1)
        for name in ("lower", "timed"):
            check_choice(name, getattr(self, name), LOWERINGS)
        check_path("resume", self.resume)

    def methods_for(self, can_calibrate: bool, has_schedules: bool) -> tuple[str, ...]:
        """The methods, or the default for what the evaluation has to compare.

        Raises:
            OptionError: one of them calibrates, and there is nothing to calibrate on.
        """
        if self.methods is None:
            return () if has_schedules else (*CALIBRATED, *UNCALIBRATED) if can_calibrate else UNCALIBRATED
        for method in self.methods:
            if method in (*CALIBRATED, *COMBINED) and not can_calibrate:
                raise OptionError(f"calibration: needed by the method {method!r}: a file of prompts that data lacks")
        return tuple(self.methods)
