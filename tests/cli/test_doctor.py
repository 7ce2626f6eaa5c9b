"""``opskip doctor``: what it finds here, and what it says of an installation in which something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from opskip_compile.doctor import facts, trials
from opskip_compile.doctor.finding import Finding
from tests.helpers.commands import call, one_line

pytestmark = pytest.mark.usefixtures("fresh")


def found(name: str, among: list[Finding]) -> Finding:
    (one,) = (each for each in among if each.name == name)
    return one


@pytest.mark.inductor
def test_here() -> None:
    result = call("doctor", "--device", "cpu")
    said = result.stdout
    assert result.exit_code == 0, said
    assert f"torch: {torch.__version__} (tested: >=2.11,<2.16)" in said
    assert "ok Inductor: compiles on cpu" in said
    assert "ok a small LLaVA: 3 of 3 operators skipped" in said
    assert said.rstrip().endswith("nothing wrong was found")


def test_json_without_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSKIP_SCHEDULE", "late:0.5")
    result = call("doctor", "--no-trials", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert {row["topic"] for row in rows} == {"versions", "devices", "plug-ins", "settings"}
    assert ("OPSKIP_SCHEDULE", "late:0.5") in {(row["name"], row["value"]) for row in rows}


@pytest.mark.parametrize(("version", "fine"), [("2.10.1", False), ("2.11.0+cu130", True), ("2.16.0", False)])
def test_versions_outside_of_the_window(version: str, fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "version", lambda name: version)
    told = found("torch", list(facts.versions()))
    assert told.fine is fine
    assert (told.advice == "") is fine
    if not fine:
        assert "install torch>=2.11,<2.16" in told.advice


VLLM = [("", True, None), ("0.32.1", True, True), ("0.31.0", True, False), ("0.32.0", False, False)]


@pytest.mark.parametrize(("version", "registered", "fine"), VLLM)
def test_vllm(version: str, registered: bool, fine: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_version", lambda name: version if name == "vllm" else "")
    if not registered:
        monkeypatch.setattr(facts, "entry_points", lambda group: ())
    assert found("vLLM", list(facts.plugins())).fine is fine


def test_torch_compile_is_off() -> None:
    with torch._dynamo.config.patch(disable=True):
        result = call("doctor")
    assert result.exit_code == 1
    said = result.stdout
    assert "!! torch.compile: torch.compile is switched off" in said
    assert "a small LLaVA" not in said
    assert said.rstrip().endswith("2 marked with !!")


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:7"])
def test_a_device_that_is_not_there(device: str) -> None:
    assert f"nothing can be computed on '{device}'" in one_line(call("doctor", "--device", device))


def test_variables_are_those_of_the_user() -> None:
    """torch sets one itself once Inductor is loaded."""
    code = "from opskip_compile.cli.main import app; app(['doctor', '--no-trials'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "TORCHINDUCTOR_CACHE_DIR" not in done.stdout


def test_a_trial_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> Finding:
        raise RuntimeError("\nno compiler\nmore")

    monkeypatch.setattr(trials, "_compiles", broken)
    (told,) = trials.trials("cpu")
    assert (told.fine, told.value) == (False, "RuntimeError: no compiler")
    assert "C++ compiler" in told.advice


def test_a_wrong_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "compile_model", lambda model, spec: model)
    told = trials._tried("a small LLaVA", lambda: trials._skips("cpu"))
    assert told.fine is False
