"""``opskip eval``: the files that it writes, bad input as one line before the model is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import call, one_line

QUICK = ("--eager", "--rounds", "0", "--limit", "6", "--batch", "6", "--resamples", "50")


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def test_the_demo_model(tmp_path: Path) -> None:
    """Its own questions, a schedule and a method; every file is written, and JSON is all that stdout holds."""
    (tmp_path / "mine.json").write_text(
        '{"format": "opskip-schedule", "version": 1, "rules": [{"layers": "7", "skip": ["ffn"]}]}'
    )
    files = [part for name in ("out.json", "tables.md", "plot.svg") for part in (_option(name), tmp_path / name)]
    chosen = ["--schedule", tmp_path / "mine.json", "--method", "vtw", "--cut", "0.5"]
    run = call("eval", "--model", "demo", *QUICK, *chosen, *files, "--json")
    assert run.exit_code == 0, run.output
    figures = json.loads(run.stdout)
    assert figures == json.loads((tmp_path / "out.json").read_text())
    assert [(o["method"], o["asked"]) for o in figures["outcomes"]] == [("dense", None), ("mine", None), ("vtw", 0.5)]
    assert figures["tasks"] == {"easy_vqa": {"questions": 6, "images": 6}}
    assert figures["outcomes"][1]["accuracy"] == 1  # nothing reads the visual rows of the last layer's FFN
    assert "| mine |" in (tmp_path / "tables.md").read_text()
    assert "last layers" not in (plot := (tmp_path / "plot.svg").read_text())
    assert "token dropping, VTW-like" in plot


def _option(name: str) -> str:
    return {"out.json": "--out", "tables.md": "--markdown", "plot.svg": "--plot"}[name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "x"], "data: needed for a model of your own"),
        (["--model", "x", "--data", "gone.jsonl"], "data: 'gone.jsonl' can't be read"),
        (["--model", "demo", "--schedule", "silent:x"], "'silent:x'"),
        (["--model", "demo", "--method", "best"], "methods: expected some of per-prompt"),
        (["--model", "demo", "--cut", "2"], "cuts: expected shares over 0 and below 1, got 2.0"),
        (["--model", "demo", "--plot", "x.gif"], "plot: expected a file that ends in .png"),
        (["--model", "demo", "--out", "gone/x.json"], "out: there is no folder 'gone'"),
        (["--model", "demo", "--device", "tpu9"], "device: 'tpu9' can't be used"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str) -> None:
    assert said in one_line(call("eval", *arguments))
