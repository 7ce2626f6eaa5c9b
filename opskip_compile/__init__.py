"""opskip_compile: multimodal LLMs that skip visual rows, per layer and operator, at the compiler level.

``torch.compile(model, backend="opskip")`` for ``forward``; ``opskip_compile.compile(model)`` for everything.

Importing the package loads nothing else, not even torch: each name below is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opskip_compile.api import compile, explain, last_report, remove, reports
    from opskip_compile.backend.capture import unpatch
    from opskip_compile.backend.settings import Settings
    from opskip_compile.calibration.budget import Budget
    from opskip_compile.calibration.calibrate import calibrate
    from opskip_compile.calibration.config import CalibrationConfig
    from opskip_compile.calibration.diagnose import Diagnosis, diagnose
    from opskip_compile.calibration.result import CalibrationResult
    from opskip_compile.errors import (
        NothingSkippedWarning,
        OpSkipError,
        OptionError,
        RewriteError,
        ScheduleError,
        UncalibratedScheduleWarning,
    )
    from opskip_compile.evaluation.config import EvaluationConfig
    from opskip_compile.evaluation.evaluate import evaluate
    from opskip_compile.evaluation.result import Evaluation
    from opskip_compile.models.loading import load
    from opskip_compile.models.oracle import oracle
    from opskip_compile.models.plans import tensor_parallel_plan
    from opskip_compile.passes.runtime import mark_visual
    from opskip_compile.report.diff import GraphDiff
    from opskip_compile.report.report import Report
    from opskip_compile.schedule.flops import FlopsReport, count_flops
    from opskip_compile.schedule.geometry import Geometry
    from opskip_compile.schedule.presets import Preset, presets
    from opskip_compile.schedule.rules import Rule
    from opskip_compile.schedule.schedule import Schedule

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
    "load",
    "mark_visual",
    "oracle",
    "presets",
    "remove",
    "reports",
    "tensor_parallel_plan",
    "unpatch",
]

if not TYPE_CHECKING:  # else a checker takes any name for one of ours
    _HOMES = {
        "api": ("compile", "explain", "last_report", "remove", "reports"),
        "backend.capture": ("unpatch",),
        "backend.settings": ("Settings",),
        "calibration.budget": ("Budget",),
        "calibration.calibrate": ("calibrate",),
        "calibration.config": ("CalibrationConfig",),
        "calibration.diagnose": ("Diagnosis", "diagnose"),
        "calibration.result": ("CalibrationResult",),
        "errors": (
            "NothingSkippedWarning",
            "OpSkipError",
            "OptionError",
            "RewriteError",
            "ScheduleError",
            "UncalibratedScheduleWarning",
        ),
        "evaluation.config": ("EvaluationConfig",),
        "evaluation.evaluate": ("evaluate",),
        "evaluation.result": ("Evaluation",),
        "models.loading": ("load",),
        "models.oracle": ("oracle",),
        "models.plans": ("tensor_parallel_plan",),
        "passes.runtime": ("mark_visual",),
        "report.diff": ("GraphDiff",),
        "report.report": ("Report",),
        "schedule.flops": ("FlopsReport", "count_flops"),
        "schedule.geometry": ("Geometry",),
        "schedule.presets": ("Preset", "presets"),
        "schedule.rules": ("Rule",),
        "schedule.schedule": ("Schedule",),
    }
    _HOME = {name: home for home, names in _HOMES.items() for name in names}

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
