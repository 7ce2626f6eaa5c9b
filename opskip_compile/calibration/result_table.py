"""A calibration as a table for the terminal."""

from __future__ import annotations

from rich.table import Table

from opskip_compile.calibration.data import CalibrationData, Choice, Quality


def front_table(result: CalibrationData) -> Table:
    """The front, one line a point; the chosen schedule is marked."""
    table = Table(title="Schedules on the front of cut against divergence", title_justify="left")
    for name in ("FLOPs cut", "KL", "KL held out", "same answer", "schedule"):
        table.add_column(name, justify="left" if name == "schedule" else "right", no_wrap=name != "schedule")
    choices: list[Choice] = [*result.front]
    if result.chosen.skipped not in {choice.skipped for choice in choices}:
        choices.append(result.chosen)
    for choice in sorted(choices, key=lambda choice: choice.cut):
        if not choice.skipped:
            continue
        judged = choice.judged
        chosen = choice.skipped == result.chosen.skipped
        table.add_row(
            f"{choice.cut:.1%}",
            _divergence(choice.calibration),
            _divergence(choice.heldout),
            "" if judged is None else f"{judged.agreement:.1%}",
            choice.schedule.to_spec() + ("  <- chosen" if chosen else ""),
            style="bold" if chosen else None,
        )
    return table


def _divergence(quality: Quality | None) -> str:
    return "" if quality is None else f"{quality.divergence:.2e}"
