"""opskip_compile: multimodal LLMs that skip visual rows, per layer and operator, at the compiler level.

``torch.compile(model, backend="opskip")`` for ``forward``; ``opskip_compile.compile(model)`` for everything.
"""

from opskip_compile.api import compile, explain, last_report, remove, reports
from opskip_compile.calibration import Budget, CalibrationResult, Diagnosis, calibrate, diagnose
from opskip_compile.errors import (
    NothingSkippedWarning,
    OpSkipError,
    OptionError,
    RewriteError,
    ScheduleError,
    UncalibratedScheduleWarning,
)
from opskip_compile.evaluation import Evaluation, evaluate
from opskip_compile.flops import FlopsReport, Geometry, count_flops
from opskip_compile.graphs.diff import GraphDiff
from opskip_compile.oracle import oracle
from opskip_compile.passes.report import Report
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.presets import Preset, presets
from opskip_compile.schedule import Rule, Schedule
from opskip_compile.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "CalibrationResult",
    "Diagnosis",
    "Evaluation",
    "FlopsReport",
    "Geometry",
    "GraphDiff",
    "NothingSkippedWarning",
    "OpSkipError",
    "OptionError",
    "Preset",
    "Report",
    "RewriteError",
    "Rule",
    "Schedule",
    "ScheduleError",
    "Settings",
    "UncalibratedScheduleWarning",
    "calibrate",
    "compile",
    "count_flops",
    "diagnose",
    "evaluate",
    "explain",
    "last_report",
    "mark_visual",
    "oracle",
    "presets",
    "remove",
    "reports",
]
