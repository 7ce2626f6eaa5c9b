"""An evaluation as tables: for the terminal, and as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opskip_compile.evaluation.data import EvaluationData, MethodOutcome, is_dense
from opskip_compile.evaluation.measures import Interval

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("method", "FLOPs cut", "accuracy", "retained", "95 %", "same answer", "prefill")


def rows(result: EvaluationData) -> list[tuple[str, ...]]:
    """One line for each outcome, as text."""
    return [
        (
            _name(outcome),
            f"{outcome.cut:.1%}",
            f"{outcome.accuracy:.1%}",
            _share(outcome.retained),
            "" if is_dense(outcome) else _bounds(outcome.intervals.retained),
            f"{outcome.agreement:.1%}",
            "" if outcome.speed is None else f"{outcome.speed.measured:.2f}x",
        )
        for outcome in result.outcomes
    ]


def outcome_table(result: EvaluationData) -> Table:
    """For the terminal; a line between cuts."""
    from rich import box
    from rich.table import Table

    table = Table(title=title(result), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    asked = None
    for outcome, cells in zip(result.outcomes, rows(result), strict=True):
        if outcome.asked != asked:
            table.add_section()
            asked = outcome.asked
        table.add_row(*cells)
    return table


def markdown(result: EvaluationData) -> str:
    """All outcomes, then the accuracy of each by task."""
    tasks = list(result.tasks)
    by_task = [
        (_name(outcome), f"{outcome.cut:.1%}", *(f"{outcome.by_task[task]:.1%}" for task in tasks))
        for outcome in result.outcomes
    ]
    parts = [title(result), _markdown(COLUMNS, rows(result))]
    if len(tasks) > 1:
        parts.append(_markdown(("accuracy", "FLOPs cut", *tasks), by_task))
    parts += [f"Missing: {text}" for text in result.missing]
    return "\n\n".join(parts)


def title(result: EvaluationData) -> str:
    """What was asked."""
    questions = sum(count for count, _ in result.tasks.values())
    many = "1 task" if len(result.tasks) == 1 else f"{len(result.tasks)} tasks"
    return f"{result.about['architecture']}, {questions:,} questions of {many}"


def _name(outcome: MethodOutcome) -> str:
    runs = len(outcome.runs)
    return outcome.method + (f", mean of {runs}" if runs > 1 else "")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _bounds(value: Interval | None) -> str:
    return "" if value is None else f"{value.low:.1%} - {value.high:.1%}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    aligned = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, aligned, *lines))
