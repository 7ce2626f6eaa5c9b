"""One small prefill, measured: what the tests of timing and of its tables share."""

from __future__ import annotations

from typing import Any

import opskip_compile as opskip
from opskip_compile.timing.decoders import Decoder
from opskip_compile.timing.dropping import Dropping
from opskip_compile.timing.prefill import PrefillTimes, run_prefill

SMALL = opskip.Geometry(4, 64, 96, 4, 2, 16)
VISUAL, TEXT = 24, 20


def measured(**more: Any) -> list[PrefillTimes]:
    schedules = {"none": opskip.Schedule.of("none"), "some": opskip.Schedule.of("silent:1 attend:3")}
    sizes = {"visual": VISUAL, "text": TEXT, "rounds": 2, "lower": "eager", **more}
    return run_prefill(Decoder("small", "Qwen3VLText", SMALL), schedules, {"drop": Dropping(2, 1.0)}, **sizes)
