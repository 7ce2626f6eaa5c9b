"""What `evaluate` returns: the data of an evaluation, and how it is written and drawn."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from opskip_compile.evaluation.data import EvaluationData
from opskip_compile.evaluation.plots import figure
from opskip_compile.evaluation.result_tables import markdown
from opskip_compile.output.plots import write_figure


@dataclass(frozen=True)
class Evaluation(EvaluationData):
    """What `opskip_compile.evaluate` returns: `of` one method, `to_dict` for JSON, tables and a plot for people.

    Attributes: as `EvaluationData`.
    """

    def markdown(self) -> str:
        """Two tables: all outcomes, and their accuracy by task."""
        return markdown(self)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw what is retained against the cut, and the tasks' accuracies, to a .png, .svg or .pdf.

        Raises:
            OptionError: another suffix. OpSkipError: matplotlib is missing, or the file can't be written.
        """
        write_figure(lambda: figure(self), Path(path))

    def __str__(self) -> str:
        return self.markdown()
