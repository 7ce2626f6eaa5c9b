"""Prefill figures as a table and as a plot."""

from __future__ import annotations

from dataclasses import replace

from opskip_compile.bench.show_prefill import Case, figure, table
from opskip_compile.timing.prefill import INDUCTOR, ONEDNN, PrefillTimes


def test_plot_and_table() -> None:
    row = PrefillTimes("x", "schedule", "silent:0", 50, 100, (0.5, 0.25), (1.0, 1.0), 3, 4, INDUCTOR, (1.0, 1.0))
    dense = replace(row, name=INDUCTOR, kind="dense", flops=100, seconds=(1.0, 1.0))
    case = Case("M", 4, 36, 1024, 64, (dense, row, replace(row, name="d", kind="dropping")))
    made = figure([case, case], "CPU")
    assert len(made.axes) == 2
    in_onednn = replace(dense, name=ONEDNN, seconds=(0.5, 0.5))
    (axes,) = figure([replace(case, rows=(*case.rows, in_onednn))], "CPU").axes
    assert {
        line.get_gid(): line.get_ydata()[-1]
        for line in axes.lines
        if line.get_gid() in ("ideal", "ideal, all in oneDNN")
    } == {"ideal": 2, "ideal, all in oneDNN": 4}
    for axes in made.axes:
        assert {label.get_text() for label in axes.texts} == {"x", "d"}
        (ideal,) = (line for line in axes.lines if line.get_gid() == "ideal")
        cut, speed = ideal.get_data()
        assert (cut[-1], speed[-1]) == (50.0, 2.0)
    assert table(case).row_count == 3
