"""What `calibrate` returns: the data of a calibration, and how it is drawn and written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from opskip_compile.calibration.data import CalibrationData
from opskip_compile.calibration.page import render
from opskip_compile.calibration.plots import figure
from opskip_compile.output.files import write_whole
from opskip_compile.output.plots import write_figure


@dataclass(frozen=True)
class CalibrationResult(CalibrationData):
    """What `opskip_compile.calibrate` returns: a `schedule` to run, and the evidence for it as data, text and pictures.

    Attributes: as `CalibrationData`.
    """

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the scores as a heat map and the front with its controls to a .png, .svg or .pdf.

        Raises:
            OptionError: another suffix. OpSkipError: matplotlib is missing, or the file can't be written.
        """
        write_figure(lambda: figure(self), Path(path))

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one page with the plot and the tables; it needs no network. Raises as `plot`."""
        write_whole(path, render(self))
