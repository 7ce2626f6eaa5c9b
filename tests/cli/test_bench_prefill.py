"""``opskip bench prefill``: what it writes, and bad input as one line before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from opskip_compile.cli.main import app
from opskip_compile.timing import decoders
from opskip_compile.timing.decoders import DECODERS, Decoder
from opskip_compile.timing.prefill import EAGER, INDUCTOR
from tests.helpers.small_prefill import SMALL

pytestmark = pytest.mark.usefixtures("fresh", "plain_blas")


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["bench", "prefill", *args])


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "DECODERS", {"small": Decoder("small", "Llama", SMALL)})
    out, plot = tmp_path / "out.json", tmp_path / "out.svg"
    given = ("--visual", "24", "--visual", "32", "--text", "20", "--rounds", "1", "--eager", "--layers", "3")
    plans = ("--schedule", "silent:all", "--schedule", "llava-1.5-7b/16")
    done = run(*given, *plans, "--json", "--out", str(out), "--plot", str(plot))
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text())
    assert [case["visual"] for case in report["cases"]] == [24, 32]
    specs = {row["name"]: row["spec"] for row in report["cases"][0]["results"]}
    assert specs["silent:all"] == "silent:0-2"
    assert set(specs) == {EAGER, INDUCTOR, "silent:all", "llava-1.5-7b/16", "FastV-like, layer 1", "VTW-like, layer 1"}
    assert {"command", "device", "dtype", "processor", "versions"} <= set(report)
    assert "<svg" in plot.read_text()
    shown = run("--visual", "24", "--rounds", "1", "--eager", "--layers", "3", "--profile").stdout
    (header,) = (line.split() for line in shown.splitlines() if "products" in line and "attention" in line)
    assert header == ["contender", "products", "attention", "other", "all"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model", "gpt"), "model: expected one of small"),
        (("--dtype", "int8"), "dtype: expected one of float32"),
        (("--device", "nowhere"), "device: 'nowhere' can't be used"),
        (("--layers", "99"), "layers: Qwen3-VL at width 1024 has 1 to 36, got 99"),
        (("--schedule", "late:2"), "late"),
        (("--schedule", "silent:9", "--layers", "4"), "layer"),
        (("--without", "speed"), "without: expected share_rotary, causal, onednn, regions"),
        (("--plot", "x.gif"), "plot: expected a file that ends in"),
        (("--out", "/nowhere/x.json"), "out: there is no folder"),
    ],
)
def test_bad_input_is_named_before_any_work(args: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_work(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(Decoder, "build", no_work)
    done = run(*args)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert "Traceback" not in done.output


def test_list() -> None:
    shown = run("--list").stdout
    assert all(name in shown for name in DECODERS)
