"""What a compile leaves for later reading: files in a folder, log lines, and structured trace artefacts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import fx

from opskip_compile import _compat
from opskip_compile.errors import OptionError
from opskip_compile.output.files import write_whole
from opskip_compile.passes.pipeline import Observer
from opskip_compile.passes.refusal import Why
from opskip_compile.passes.state import Pass, PassReport, State
from opskip_compile.report.diff import GraphDiff
from opskip_compile.report.report import Report

log = logging.getLogger(__name__)


def log_report(report: Report) -> None:
    """The report at level info (debug for a graph without visual rows), and one debug line a pass."""
    has_no_rows = report.refusal is not None and report.refusal.why in (Why.NO_ROWS, Why.DECODER_WITHOUT_ROWS)
    log.log(logging.DEBUG if has_no_rows else logging.INFO, "%s", report)
    for done in report.passes:
        log.debug("pass %-12s %8.2f ms %5d changed", done.name, done.milliseconds, done.changed)


def trace_report(report: Report, before: Callable[[], str], after: Callable[[], str]) -> None:
    """Artefacts of the structured trace, which tlparse shows; nothing is made while no trace is written.

    Args:
        before, after: the code of the captured graph and of what is lowered.
    """
    if report.operators:
        _compat.emit_artifact("opskip_before_graph", before)
        _compat.emit_artifact("opskip_after_graph", after)
    _compat.emit_artifact("opskip_report", lambda: report_json(report))


def code_of(graph: fx.Graph) -> str:
    """A graph as Python."""
    return str(graph.python_code("self").src)


def collecting(codes: list[tuple[str, str]]) -> Observer:
    """Note the name of every pass that changes the graph, and the graph after it as Python."""

    def observe(each: Pass, state: State, report: PassReport) -> None:
        if report.changed:
            codes.append((each.name, code_of(state.graph)))

    return observe


def write_dump(folder: Path, report: Report, before: str, after: str, codes: Sequence[tuple[str, str]] = ()) -> None:
    """``graph<number>_before.py``, ``_after.py``, ``_report.json``, ``_diff.json`` and ``_diff.html`` in ``folder``.

    For every pass that changed the graph there is ``graph<number>_pass<place>_<name>.py``, too: the graph after it.

    Raises:
        OptionError: the folder can't be made.
        OpSkipError: a file can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"options.dump: {str(folder)!r}: {error.strerror or error}") from error
    diff: GraphDiff = report.diff()
    stem = f"graph{report.number}"
    write_whole(folder / f"{stem}_before.py", before)
    write_whole(folder / f"{stem}_after.py", after)
    write_whole(folder / f"{stem}_report.json", report_json(report))
    write_whole(folder / f"{stem}_diff.json", diff.to_json() + "\n")
    for place, (name, code) in enumerate(codes, 1):
        write_whole(folder / f"{stem}_pass{place:02d}_{name}.py", code)
    diff.to_html(folder / f"{stem}_diff.html")


def report_json(report: Report) -> str:
    """The report as text."""
    return json.dumps(report.to_dict(), indent=1) + "\n"
