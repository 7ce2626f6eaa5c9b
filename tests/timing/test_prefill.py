"""One prefill, timed: contenders run what they say, and figures follow from the rounds."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

import opskip_compile as opskip
from opskip_compile import _compat
from opskip_compile.bench.show_prefill import Case, table
from opskip_compile.passes.tune import onednn
from opskip_compile.timing import prefill
from opskip_compile.timing.prefill import EAGER, INDUCTOR, ONEDNN, PrefillTimes
from tests.helpers.releases import since_5_23
from tests.helpers.small_prefill import SMALL, TEXT, VISUAL, measured

pytestmark = pytest.mark.usefixtures("fresh", "plain_blas")


def test_rows() -> None:
    steps: list[tuple[str, int, int]] = []
    rows = measured(without=("causal",), step=lambda *step: steps.append(step))
    by_name = {row.name: row for row in rows}
    assert list(by_name) == [EAGER, INDUCTOR, "none", "none, causal off", "some", "some, causal off", "drop"]
    assert [done for _, done, _ in steps] == list(range(steps[-1][2]))
    some = by_name["some"]
    counted = opskip.count_flops(SMALL, visual_tokens=VISUAL, text_tokens=TEXT, schedule="silent:1 attend:3")
    assert (some.flops, some.dense_flops, some.ideal) == (counted.skipped, counted.dense, counted.ideal_speedup)
    assert all(row.dense_seconds == by_name[INDUCTOR].seconds and len(row.seconds) == 2 for row in rows)
    assert all(row.peak > 4 * 2 * SMALL.num_kv_heads * SMALL.head_dim * TEXT for row in rows)
    assert by_name["drop"].peak < by_name[INDUCTOR].peak
    skipped = [report for report in opskip.reports() if report.rewritten]
    assert {r.layer_states() for r in skipped} == {("full", "silent", "full", "attend")}


def test_dense_with_the_same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "blas_is_slow", lambda: True)
    monkeypatch.setattr(onednn, "SMALLEST", 1)
    made, replaced = prefill.use_onednn, list[int]()

    def recorded(*graphs: Any) -> int:
        replaced.append(made(*graphs))
        return replaced[-1]

    monkeypatch.setattr(prefill, "use_onednn", recorded)
    rows = {row.name: row for row in measured(without=("onednn", "causal"))}
    off = ["none, onednn off", "none, causal off", "some", "some, onednn off", "some, causal off"]
    assert list(rows) == [EAGER, INDUCTOR, ONEDNN, "none", *off, "drop"]
    assert len(replaced) >= 2 and {*replaced} == {28}  # seven of each layer: the dense decoder, and the one that drops


def test_the_fastest_dense_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.name: row for row in measured(rounds=3)}
    dense = {name: statistics.median(rows[name].seconds) for name in (EAGER, INDUCTOR)}
    fastest = min(dense, key=lambda name: dense[name])
    assert {row.fastest for row in rows.values()} == {fastest}
    assert {row.fastest_seconds for row in rows.values()} == {rows[fastest].seconds}
    assert rows[fastest].to_dict()["to_fastest_dense"] == 1
    view = table(Case("M", 4, 4, VISUAL, TEXT, tuple(rows.values())))
    assert "to fastest" in [column.header for column in view.columns] and f"against {fastest}," in str(view.caption)


def test_profile() -> None:
    assert not measured(rounds=1)[0].by_kind
    steps: list[tuple[str, int, int]] = []
    rows = measured(rounds=1, profile=True, step=lambda *step: steps.append(step))
    assert [done for _, done, _ in steps] == list(range(steps[-1][2]))
    for row in rows:
        assert [*row.by_kind] == ["products", "attention", "other"]
        assert min(row.by_kind.values()) > 0
        assert row.to_dict()["seconds_by_kind"].keys() == row.by_kind.keys()
    with pytest.raises(opskip.OptionError, match="profile: for a CPU only, not meta"):
        measured(profile=True, device="meta")


@pytest.mark.parametrize(
    "attention_mask", [True, pytest.param(False, marks=since_5_23("there is a dense mask for any prompt"))]
)
def test_prompts_come_with_an_attention_mask(attention_mask: bool) -> None:
    measured(rounds=1, attention_mask=attention_mask)
    (report,) = (report for report in opskip.reports() if report.rewritten)
    replaced = {done.name: done.changed for done in report.passes}["causal"]
    assert replaced == (3 if attention_mask else 0)  # the three full attentions, which see a dense mask


def test_figures_of_a_row() -> None:
    seconds, dense, eager = (0.5, 0.25, 1.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5)
    row = PrefillTimes("x", "schedule", "silent:0", 50, 100, seconds, dense, 3 << 20, 4 << 20, EAGER, eager)
    found = row.to_dict()
    assert (row.cut, row.ideal, row.measured) == (0.5, 2.0, 2.0)
    assert (found["spread"], found["realised"], found["milliseconds"]) == ([1.0, 4.0], 1.0, 500.0)
    assert (found["peak_mib"], found["peak_to_inductor"]) == (3.0, 0.75)
    assert (found["fastest_dense"], found["to_fastest_dense"]) == (EAGER, 1.0)
    slow = replace(row, name="slow", seconds=(0.6, 0.6, 0.6))
    assert prefill.never_slower([row, slow, replace(slow, flops=100), replace(slow, kind="dense")]) == ["slow"]


def test_a_schedule_that_stays_full_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    given, compiled = list[dict[str, Any]](), torch.compile

    def recorded(*args: Any, **kwargs: Any) -> Any:
        given.append(kwargs)
        return compiled(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", recorded)
    measured(rounds=1)
    ours = [kwargs["options"] for kwargs in given if kwargs["backend"] == "opskip"]
    assert [options["strict"] for options in ours] == [True, True]
    assert all(kwargs["dynamic"] is False for kwargs in given)
