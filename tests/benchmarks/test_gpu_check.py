"""The check of a GPU, tried on a CPU: its steps, its limits, and what it says of a wrong answer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import __main__ as check
from benchmarks.gpu_check import steps
from benchmarks.gpu_check.steps import STEPS, Keep, Setting, Step

ROOT = Path(__file__).parents[2]


def test_all_steps_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--quick", "--lower", "eager"]
    done = subprocess.run(
        [*command, "--minutes", "9", "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text())["found"] for name in STEPS}
    assert [line["wrong"] for line in found["correctness"]] == [False] * 8
    prefill = {line["name"]: line for line in found["prefill"]}
    assert set(prefill) >= {"Inductor", "/20", "all silent", "levels"}
    assert prefill["levels"]["levels"] == [2] and prefill["levels"]["wrong"] is False
    assert prefill["levels"]["gflops"] == prefill["a quarter kept"]["gflops"]
    assert {line["batch"] for line in found["batches"]} == {4}
    assert [line["wrong"] for line in found["graphs"]] == [False] * 5
    assert all(line["top"] and line["busy_ms"] for line in found["profile"])


def test_without_a_gpu(tmp_path: Path) -> None:
    """One line, and the call that works."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "gpu")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2 and "--device cpu --quick --lower eager" in done.stderr
    assert not (tmp_path / "gpu").exists()


def test_what_may_be_missing_there() -> None:
    """Nothing that the steps run needs rich or typer."""
    code = "import sys; sys.modules.update(rich=None, typer=None); import benchmarks.gpu_check.steps, torch;"
    code += "torch._dynamo.lookup_backend('opskip')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_step_that_hangs_is_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With its children, and the next one runs; without time left none is begun. What an earlier run found is gone."""

    def nothing(setting: Setting, keep: Keep) -> None:
        """nothing"""

    monkeypatch.setattr(check, "STEPS", {name: Step(nothing, 1.0, 1.0) for name in ("first", "second", "third")})
    monkeypatch.setattr(check, "LEAST", 0.5)
    times = iter([0.0, 0.0, 0.0, 60.0])
    command = [sys.executable, "-c", "import sys, time; time.sleep(60 if 'first' in sys.argv else 0)"]
    start = time.monotonic()
    (tmp_path / "first.json").write_text('{"found": [{}]}')
    setting = Setting("cpu", False, "eager")
    assert check.run_all(["first", "second", "third"], 1, command, setting, tmp_path, lambda: next(times)) == 2
    assert not (tmp_path / "first.json").exists()
    assert time.monotonic() - start < 30
    said = capsys.readouterr().out
    assert "first: stopped at its limit" in said and "second: done" in said and "third: not run" in said


def test_a_wrong_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(setting: Setting, keep: Keep) -> None:
        keep({"family": "llava", "wrong": True})
        raise RuntimeError("later")

    def run(name: str) -> Any:
        return check.run_step(name, Setting("cpu", True, "eager"), tmp_path)

    monkeypatch.setattr(check, "STEPS", {"wrong": Step(wrong, 1.0, 1.0)})
    with pytest.raises(RuntimeError, match="later"):
        run("wrong")
    assert json.loads((tmp_path / "wrong.json").read_text())["found"] == [{"family": "llava", "wrong": True}]
    monkeypatch.setattr(check, "STEPS", {"wrong": Step(lambda setting, keep: keep({"wrong": True}), 1.0, 1.0)})
    assert run("wrong") is False


@pytest.mark.parametrize("wrong", [False, True])
def test_what_was_found_before_a_stop(wrong: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is kept, and counts if it was wrong."""

    def nothing(setting: Setting, keep: Keep) -> None:
        """nothing"""

    monkeypatch.setattr(check, "STEPS", {"slow": Step(nothing, 3.0, 3.0)})
    monkeypatch.setattr(check, "LEAST", 0.5)
    found = json.dumps({"found": [{"wrong": wrong}]})
    code = f"import time; open({str(tmp_path / 'slow.json')!r}, 'w').write({found!r}); time.sleep(60)"
    command = [sys.executable, "-c", code]
    setting = Setting("cpu", True, "eager")
    assert check.run_all(["slow"], 1, command, setting, tmp_path, time.monotonic) == int(wrong)
    assert (tmp_path / "slow.json").read_text() == found


def test_a_model_that_answers_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_error", lambda got, wanted: float("nan"))
    found: list[dict[str, Any]] = []

    def keep(one: dict[str, Any]) -> None:
        found.append(one)
        raise StopIteration

    with pytest.raises(StopIteration):
        steps.correctness(Setting("cpu", True, "eager"), keep)
    assert found[0]["wrong"] is True
