"""`opskip bench compile`: the parts of a first call, dense and skipped, each from a process of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import opskip_compile as opskip
from opskip_compile.bench import compile_time
from opskip_compile.bench.compile_time import DENSE, PARTS, PROBE, Start, measure_starts
from opskip_compile.bench.show_compile_time import figure, table, to_dict, with_dense
from opskip_compile.cli.main import app
from opskip_compile.errors import OpSkipError
from tests.helpers.leveled import leveled

SIZES = {"visual": 24, "text": 20, "lower": "eager"}


def start(contender: str, seconds: float, warm: bool = False, layers: int = 2) -> Start:
    passes = {} if contender == DENSE else {"match": seconds / 8}
    parts = {name: 0.0 if name == PROBE else seconds / 4 for name in PARTS}
    return Start(contender, layers, warm, parts, passes, 9, 5)


def test_medians_of_processes_that_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[int, str, bool]] = []
    times = iter([4.0, 1.0, 8.0, 2.0, 40.0, 1.0, 6.0, 2.0, 5.0, 1.0, 100.0, 2.0])
    caches = set()

    def process(job: dict[str, Any], contender: str, warm: bool, cache: str) -> Start:
        order.append((job["layers"], contender, warm))
        caches.add(cache)
        assert (Path(cache) / "filled").exists() == warm
        (Path(cache) / "filled").touch()
        return start(contender, next(times), warm)

    monkeypatch.setattr(compile_time, "_in_a_process", process)
    found = measure_starts("small", {2: opskip.Schedule.of("silent:1")}, rounds=3, **SIZES)
    one_round = [(2, DENSE, False), (2, DENSE, True), (2, "silent:1", False), (2, "silent:1", True)]
    assert order == one_round * 3
    assert len(caches) == 6
    assert not any(Path(cache).exists() for cache in caches)
    assert [(s.contender, s.warm, s.seconds) for s in found] == [
        (DENSE, False, 5.0),
        (DENSE, True, 1.0),
        ("silent:1", False, 8.0),
        ("silent:1", True, 2.0),
    ]
    assert found[2].passes == {"match": 1.0}


def test_a_real_process(monkeypatch: pytest.MonkeyPatch) -> None:
    real, cold = compile_time._in_a_process, dict[str, Start]()

    def process(job: dict[str, Any], contender: str, warm: bool, cache: str) -> Start:
        """A warm start differs in nothing that is looked at here."""
        if not warm:
            cold[contender] = real(job, contender, warm, cache)
        return replace(cold[contender], warm=warm)

    monkeypatch.setattr(compile_time, "_in_a_process", process)
    dense, _, skipped, _ = measure_starts("small", {1: opskip.Schedule.of("silent:0")}, **SIZES)
    assert (dense.contender, skipped.contender) == (DENSE, "silent:0")
    assert dense.passes == {}
    assert {"match", "push_down", "report"} <= set(skipped.passes)
    assert skipped.parts["passes"] == pytest.approx(sum(skipped.passes.values()))
    for each in (dense, skipped):
        assert each.parts["capture"] > 0
        assert each.parts["Inductor"] == 0
        assert each.kernels == 0
    assert skipped.nodes > 50


def test_levels_are_compiled_as_they_are() -> None:
    """They have no spec text that could be read again."""
    job = {"model": "small", "layers": 2, "device": "cpu", "dtype": "float32", "attention_mask": True, **SIZES}
    schedule = leveled("none", "attend:1 transform@keep=0.5:1", num_layers=2)
    torch._dynamo.reset()
    found = compile_time.first_call({**job, "contender": "levels", "schedule": schedule.to_dict()})
    assert found.contender == "levels"
    assert opskip.last_report().levels
    assert opskip.last_report().skipped == ("1.attention", "1.ffn")


def test_a_process_that_fails_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(OpSkipError, match=r"bench compile: silent:7 with 1 layers failed.*not in a model of 1"):
        job = {"model": "small", "layers": 1, "device": "cpu", "dtype": "float32", "attention_mask": True, **SIZES}
        job["schedule"] = opskip.Schedule.of("silent:7").to_dict()
        compile_time._in_a_process(job, "silent:7", False, str(tmp_path))


def test_figures_against_dense() -> None:
    starts = [start(DENSE, 4.0), start("silent:1", 6.0), start(DENSE, 2.0, True), start("silent:1", 1.0, True)]
    figures = [to_dict(*pair) for pair in with_dense(starts)]
    assert [found["to_dense"] for found in figures] == [1.0, 1.5, 1.0, 0.5]
    assert figures[1]["passes_share"] == 0.25
    assert table(starts, "").row_count == 4
    named = table([start(DENSE, 1.0), start("none | silent:6-7 | silent:4-7 attend@keep=0.25:0-3", 1.0)], "")
    assert [*named.columns[2].cells] == [DENSE, "none | silent:6-7 | silent:4-7 …"]
    cold, warm = figure(starts, "t").axes
    assert [text.get_text() for text in cold.texts] == ["4.0", "6.0"]
    assert [text.get_text() for text in warm.texts] == ["2.0", "1.0"]
    heights = [[bar.get_height() for bar in bars] for bars in cold.containers]
    assert heights == [[0.0, 0.0]] + [[1.0, 1.5]] * 4


def test_the_probe_of_the_machine_is_set_apart() -> None:
    dense, skipped = start(DENSE, 4.0), start("silent:1", 2.0)
    for each in (dense, skipped):
        each.parts[PROBE] = 4.0  # type: ignore[index]
    found = to_dict(skipped, dense)
    assert (found["seconds"], found["to_dense"], found["to_dense_without_probe"]) == (6.0, 0.75, 0.5)


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["bench", "compile", *args])


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_time, "_in_a_process", lambda job, contender, warm, _: start(contender, 1.0, warm))
    out, plot = tmp_path / "x.json", tmp_path / "x.png"
    done = run("--layers", "2", "--schedule", "silent:all", "--json", "--out", str(out), "--plot", str(plot))
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text())
    assert [row["contender"] for row in report["results"]] == [DENSE, DENSE, "silent:0-1", "silent:0-1"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_decoders_get_an_attention_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []

    def process(job: dict[str, Any], contender: str, warm: bool, cache: str) -> Start:
        given.append(job["attention_mask"])
        return start(contender, 1.0, warm)

    monkeypatch.setattr(compile_time, "_in_a_process", process)
    run("--layers", "2")
    run("--layers", "2", "--no-attention-mask")
    assert given == [True] * 4 + [False] * 4


@pytest.mark.usefixtures("fresh")
def test_the_mask_is_part_of_what_is_compiled() -> None:
    job = {"model": "small", "layers": 1, "device": "cpu", "dtype": "float32", "contender": "silent:0", **SIZES}
    job["schedule"] = opskip.Schedule.of("silent:0").to_dict()
    without = compile_time.first_call({**job, "attention_mask": False}).nodes
    torch._dynamo.reset()
    assert compile_time.first_call({**job, "attention_mask": True}).nodes > without > 50


def test_presets_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_time, "_in_a_process", lambda job, contender, warm, _: start(contender, 1.0, warm))
    done = run("--layers", "2", "--schedule", "qwen3-vl-8b/20", "--json")
    spec = json.loads(done.stdout)["results"][-1]["contender"]
    assert opskip.Schedule.of(spec).resolve(2)[1].state == "silent"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model", "gpt"), "model: expected one of small"),
        (("--dtype", "int8"), "dtype: expected one of float32"),
        (("--layers", "99"), "layers: Qwen3-VL at width 1024 has 1 to 36, got 99"),
        (("--schedule", "none"), "schedule: 'none' skips nothing in 2 layers"),
        (("--schedule", "silent:9"), "layer"),
        (("--out", "/nowhere/x.json"), "out: there is no folder"),
    ],
)
def test_bad_input_is_named_before_any_work(args: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_work(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(compile_time, "_in_a_process", no_work)
    done = run(*args)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
