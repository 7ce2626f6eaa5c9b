"""Schedules that a command line names, and whose rows they mean."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opskip_compile.schedule.schedule import Schedule


def schedule_of(text: str, modalities: str | None) -> Schedule:
    """The schedule of a file, a preset or spec text; ``modalities`` says whose rows the latter two mean, if they don't.

    Raises:
        OptionError: no modalities, or other ones than those that the schedule names itself.
    """
    from opskip_compile.calibration.option_checks import checked_modalities
    from opskip_compile.errors import OptionError
    from opskip_compile.schedule.modalities import in_words
    from opskip_compile.schedule.schedule import Schedule

    plan = Schedule.of(text)
    if modalities is None:
        return plan
    meant = checked_modalities(modalities)
    if not text.lower().endswith(".json") and "modalities=" not in text:
        return replace(plan, modalities=meant)
    if plan.modalities != meant:
        raise OptionError(f"modalities: {text!r} says itself that it means rows of {in_words(plan.modalities)}")
    return plan
