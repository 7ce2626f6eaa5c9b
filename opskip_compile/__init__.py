"""opskip_compile: multimodal LLMs that skip visual rows, per layer and operator, at the compiler level.

``torch.compile(model, backend="opskip")`` for ``forward``; ``opskip_compile.compile(model)`` for everything.
"""

from opskip_compile.api import compile, explain, last_report, remove, reports
from opskip_compile.backend.settings import Settings
from opskip_compile.calibration import Budget, CalibrationConfig, CalibrationResult, Diagnosis, calibrate, diagnose
from opskip_compile.errors import (
    NothingSkippedWarning,
    OpSkipError,
    OptionError,
    RewriteError,
    ScheduleError,
    UncalibratedScheduleWarning,
)
from opskip_compile.evaluation import Evaluation, EvaluationConfig, evaluate
from opskip_compile.models.oracle import oracle
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.report.diff import GraphDiff
from opskip_compile.report.report import Report
from opskip_compile.schedule.flops import FlopsReport, count_flops
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.presets import Preset, presets
from opskip_compile.schedule.schedule import Rule, Schedule

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "CalibrationConfig",
    "CalibrationResult",
    "Diagnosis",
    "Evaluation",
    "EvaluationConfig",
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
