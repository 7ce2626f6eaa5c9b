"""What the benchmarks are asked to run: a decoder by its name, and schedules for its depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opskip_compile.schedule.schedule import Schedule


def check_decoder(name: str) -> None:
    """Raises `OptionError` where no decoder has this name."""
    from opskip_compile.errors import OptionError
    from opskip_compile.timing import decoders

    if name not in decoders.DECODERS:
        raise OptionError(f"model: expected one of {', '.join(decoders.DECODERS)}, got {name!r}")


def read_schedules(texts: Sequence[str], layers: int) -> dict[str, Schedule]:
    """Name -> schedule for a decoder that was cut to ``layers``.

    A published preset is thinned to the layers that are left.
    """
    from opskip_compile.schedule.presets import presets
    from opskip_compile.schedule.schedule import Schedule
    from opskip_compile.schedule.validation import ALL
    from opskip_compile.timing.decoders import thinned

    known = {preset.name for preset in presets()}
    schedules = {}
    for text in texts:
        if text in known:
            schedules[text] = thinned(Schedule.preset(text), layers)
        else:
            plan = Schedule.of(text)
            of_all = any(rule.layers == ALL for rule in plan.rules)  # the figures name the layers that there were
            schedules[text] = replace(plan, num_layers=layers) if of_all else plan
        schedules[text].resolve(layers)
    return schedules
