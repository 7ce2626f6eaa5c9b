"""Calibration: which operators of a model may leave its visual rows out, by what the answer can observe."""

from opskip_compile.calibration.budget import Budget
from opskip_compile.calibration.calibrate import calibrate
from opskip_compile.calibration.config import CalibrationConfig
from opskip_compile.calibration.diagnose import Diagnosis, diagnose
from opskip_compile.calibration.result import CalibrationResult

__all__ = ["Budget", "CalibrationConfig", "CalibrationResult", "Diagnosis", "calibrate", "diagnose"]
