"""What the benchmarks share: a bar under their title, and the files that hold their figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opskip_compile.output.console import check_targets, note

if TYPE_CHECKING:
    from opskip_compile.output.progress import Step


def check_outputs(out: Path | None, plot: Path | None) -> None:
    """See that both files can be written, before the work whose figures they shall hold."""
    from opskip_compile.output.plots import check_plot

    if plot is not None:
        check_plot(plot)
    check_targets(plot=plot, out=out)


def write_outputs(report: object, figure: Callable[[], Any], out: Path | None, plot: Path | None) -> None:
    """Write the figures and the plot to where they are wanted."""
    from opskip_compile.output.files import write_whole
    from opskip_compile.output.plots import write_figure

    if out is not None:
        write_whole(out, (json.dumps(report, indent=1) + "\n").encode())
        note(f"wrote {out}")
    if plot is not None:
        write_figure(figure, plot)
        note(f"wrote {plot}")


def announced_progress(what: str) -> AbstractContextManager[Step]:
    """A progress bar on stderr, under a line that says what is measured."""
    from rich.console import Console

    from opskip_compile.output.progress import progress

    note(what)
    return progress(Console(stderr=True))
