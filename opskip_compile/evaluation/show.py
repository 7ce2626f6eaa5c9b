"""An evaluation as tables: for the terminal, and as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opskip_compile.evaluation.measures import Interval
from opskip_compile.evaluation.result import Evaluation, Outcome, is_dense

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("method", "FLOPs cut", "accuracy", "retained", "95 %", "same answer", "prefill")


def rows(result: Evaluation) -> list[tuple[str, ...]]:
    """One line for each outcome, as text."""
    return [
        (
            _name(found),
            f"{found.cut:.1%}",
            f"{found.accuracy:.1%}",
            _share(found.retained),
            "" if is_dense(found) else _bounds(found.intervals.retained),
            f"{found.agreement:.1%}",
            "" if found.speed is None else f"{found.speed.measured:.2f}x",
        )
        for found in result.outcomes
    ]


def table(result: Evaluation) -> Table:
    """For the terminal; what follows another cut is set apart."""
    from rich import box
    from rich.table import Table

    made = Table(title=title(result), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        made.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    asked = None
    for found, cells in zip(result.outcomes, rows(result), strict=True):
        if found.asked != asked:
            made.add_section()
            asked = found.asked
        made.add_row(*cells)
    return made


def markdown(result: Evaluation) -> str:
    """All outcomes, then the accuracy of each by task."""
    tasks = list(result.tasks)
    by_task = [
        (_name(found), f"{found.cut:.1%}", *(f"{found.by_task[task]:.1%}" for task in tasks))
        for found in result.outcomes
    ]
    parts = [title(result), _markdown(COLUMNS, rows(result))]
    if len(tasks) > 1:
        parts.append(_markdown(("accuracy", "FLOPs cut", *tasks), by_task))
    parts += [f"Missing: {text}" for text in result.missing]
    return "\n\n".join(parts)


def title(result: Evaluation) -> str:
    """What was asked."""
    questions = sum(count for count, _ in result.tasks.values())
    many = "1 task" if len(result.tasks) == 1 else f"{len(result.tasks)} tasks"
    return f"{result.about['architecture']}, {questions:,} questions of {many}"


def _name(found: Outcome) -> str:
    runs = len(found.contenders)
    return found.method + (f", mean of {runs}" if runs > 1 else "")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _bounds(value: Interval | None) -> str:
    return "" if value is None else f"{value.low:.1%} - {value.high:.1%}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    aligned = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, aligned, *lines))
