"""`opskip bench passes`: times of the passes and of three matchers against depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from opskip_compile.bench import pass_scaling
from opskip_compile.bench.pass_scaling import OURS, TORCH, VF2, Depth, Matched, measure_depths
from opskip_compile.bench.show_pass_scaling import figure, table, to_dict
from opskip_compile.cli.main import app


def depth(layers: int) -> Depth:
    passes = {"match": 1.0 * layers, "report": 0.5}
    return Depth(layers, 80 * layers, 20 * layers, passes, {OURS: Matched(1.0, 2 * layers), VF2: Matched(3.0, layers)})


def test_real_decoders() -> None:
    steps: list[tuple[str, int, int]] = []
    small, large = measure_depths([1, 3], runs=2, step=lambda *step: steps.append(step))
    for each in (small, large):
        assert {name: found.found for name, found in each.matchers.items()} == {
            OURS: 2 * each.layers,
            VF2: each.layers,
            TORCH: each.layers,
        }
        assert {"match", "push_down", "regions", "report"} <= set(each.passes)
        assert all(found.milliseconds > 0 for found in each.matchers.values())
    assert large.nodes - small.nodes > 100
    assert large.nodes_after - small.nodes_after < 60, "layers that are alike are one region"
    assert steps[0] == ("capturing 1 layers", 0, 4) and steps[-1] == ("passes over 3 layers", 3, 4)


def test_without_matchers() -> None:
    (only,) = measure_depths([1], runs=1, matchers=False)
    assert only.matchers == {}
    assert table([only], "").row_count == 1
    assert figure([only], "t").axes[1].lines[:] == []


def test_median_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.0, 9.0, 9.0, 12.0])
    monkeypatch.setattr(pass_scaling.time, "perf_counter", lambda: next(clock))
    assert pass_scaling._timed(lambda: 4, 3) == Matched(3000.0, 4)


def test_table_and_plot() -> None:
    depths = [depth(2), depth(4)]
    assert to_dict(depths[1])["milliseconds"] == 4.5
    assert to_dict(depths[1])["matchers"][VF2] == {"milliseconds": 3.0, "found": 4}
    made = table(depths, "")
    assert [list(column.cells)[1] for column in made.columns] == [
        "4",
        "320",
        "80",
        "4",
        "1.1",
        "match 4",
        "1 (8)",
        "3 (4)",
    ]
    passes, matchers = figure(depths, "t").axes
    assert [text.get_text() for text in passes.get_legend().get_texts()] == ["match", "report"]
    assert [list(line.get_ydata()) for line in matchers.lines] == [[1.0, 1.0], [3.0, 3.0]]


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["bench", "passes", *args])


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_scaling, "measure_depths", lambda layers, **how: [depth(n) for n in layers])
    out, plot = tmp_path / "x.json", tmp_path / "x.png"
    done = run("--layers", "4", "--layers", "2", "--json", "--out", str(out), "--plot", str(plot))
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text())
    assert [row["layers"] for row in report["results"]] == [2, 4]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "words"), [(("--layers", "0"), "layers"), (("--out", "/nowhere/x.json"), "out: there is no folder")]
)
def test_bad_input(args: tuple[str, ...], words: str) -> None:
    done = run(*args)
    assert done.exit_code == 2
    assert words in done.stderr
