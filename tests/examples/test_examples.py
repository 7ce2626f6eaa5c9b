"""The scripts of ``examples/`` run as they are, on the model that comes with the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL")

import opskip_compile as opskip

ROOT = Path(__file__).parents[2]
SCRIPTS = {"answer", "calibrate", "inspect_graph", "serve"}  # the last one is run by tests/vllm/test_examples.py


def run(script: str, *arguments: str, where: Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / f"{script}.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_listed_and_run() -> None:
    found = {file.stem for file in (ROOT / "examples").glob("*.py")}
    listed = set(re.findall(r"examples/(\w+)\.py", (ROOT / "examples" / "README.md").read_text(encoding="utf-8")))
    assert found == listed == SCRIPTS


def test_answer(tmp_path: Path) -> None:
    said = run("answer", "--eager", where=tmp_path)
    assert re.search(r"dense: +red\nskipped: red\n", said)
    assert "10 of 16 operators skipped" in said


def test_calibrate(tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    for i in range(3):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).rectangle((8 * i, 8, 8 * i + 20, 30), fill="blue")
        picture.save(tmp_path / f"{i}.png")
    said = run("calibrate", ".", "--budget", "0.2", where=tmp_path)
    schedule = opskip.Schedule.load(tmp_path / "schedule.json")
    assert schedule.to_spec() in said and not schedule.is_empty


def test_calibrate_needs_pictures(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "calibrate.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and f"there is no picture in {tmp_path}" in done.stderr


def test_inspect_graph(tmp_path: Path) -> None:
    said = run("inspect_graph", where=tmp_path)
    assert "6 of 16 operators skipped" in said and "layer 7 ffn: skip" in said
    assert "</html>" in (tmp_path / "diff.html").read_text(encoding="utf-8")
