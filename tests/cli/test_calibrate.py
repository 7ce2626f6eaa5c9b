"""``opskip calibrate`` and ``opskip diagnose``: the files that it writes, bad input as one line, pages and plots."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import opskip_compile as opskip
from opskip_compile.calibration import page
from opskip_compile.calibration import plots as draw
from opskip_compile.calibration.effects import SILENT
from opskip_compile.cli import calibrate as command
from opskip_compile.models.checkpoint import load_checkpoint
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.commands import call, one_line
from tests.helpers.planted import deaf_after, samples

FAST = ("--no-controls", "--no-stability", "--answer-tokens", "2")


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA folder with weights and a processor."""
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    entries = []
    for i in range(6):
        Image.new("RGB", (20, 16), (40 * i, 255 - 40 * i, 90)).save(folder / f"{i}.png")
        entries.append({"image": f"{i}.png", "prompt": ("what is this", "is this what what")[i % 2], "answer": "this"})
    del entries[3]["answer"]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return folder / "data.jsonl"


def test_everything_is_written(model: Path, data: Path, tmp_path: Path) -> None:
    names = {"--out": "s.json", "--plot": "p.png", "--html": "p.html", "--report": "r.json", "--resume": "journal"}
    files = [part for option, name in names.items() for part in (option, tmp_path / name)]
    result = call("calibrate", "--model", model, "--data", data, "--budget", "0.3", "--batch", "2", *FAST[2:], *files)
    assert result.exit_code == 0, result.output
    schedule = opskip.Schedule.load(tmp_path / "s.json")
    assert schedule.num_layers == 2
    assert schedule.to_spec() in result.stdout
    assert "<- chosen" in result.stdout
    assert result.stderr.count("wrote ") == 4
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schedule"] == schedule.to_dict()
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert schedule.to_spec() in (tmp_path / "p.html").read_text()
    # The same as from Python, with the same samples.
    whole, processor = load_checkpoint(model)
    calibration = opskip.calibrate(whole, data, 0.3, processor=processor, batch=2, answer_tokens=2)
    assert calibration.schedule.to_dict() == schedule.to_dict()
    # And the schedule is one that the compiler takes.
    inspected = call(
        "inspect", model / "config.json", "--schedule", tmp_path / "s.json", "--visual", "16", "--text", "4"
    )
    assert inspected.exit_code == 0, inspected.output


def test_json_and_nothing_else(model: Path, data: Path) -> None:
    result = call("calibrate", "--model", model, "--data", data, *FAST, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["chosen"]["flops_cut"] >= 0.337
    assert report["about"]["budget"] == "33.7% fewer FLOPs"


def test_the_demo_has_samples_of_its_own() -> None:
    result = call("calibrate", "--model", "demo", "--limit", "16", *FAST[:2], "--no-whole-front", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["chosen"]["heldout"]["samples"] == 4
    assert report["chosen"]["heldout"]["agreement"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "MODEL"], "data: needed for a model of your own"),
        (["--model", "gone", "--data", "DATA"], "model: 'gone' is no folder"),
        (["--model", "MODEL", "--data", "gone.jsonl"], "data: 'gone.jsonl' can't be read"),
        (["--model", "MODEL", "--data", "DATA", "--budget", "0"], "budget: expected a cut over 0"),
        (["--model", "MODEL", "--data", "DATA", "--budget", "99%"], "budget: 99.0% fewer FLOPs can't be met"),
        (["--model", "MODEL", "--data", "DATA", "--method", "x"], "method: expected one of probe"),
        (["--model", "MODEL", "--data", "DATA", "--out", "x.txt"], "out: expected a file that ends in .json"),
        (["--model", "MODEL", "--data", "DATA", "--out", "gone/x.json"], "out: there is no folder 'gone'"),
        (["--model", "MODEL", "--data", "DATA", "--plot", "x.gif"], "plot: expected a file that ends in .png"),
        (["--model", "MODEL", "--data", "DATA", "--device", "tpu9"], "device: 'tpu9' can't be used"),
        (["--model", "MODEL", "--data", "DATA", "--dtype", "int8"], "dtype: expected one of float32"),
        (["--model", "MODEL", "--data", "DATA", "--limit", "0"], "limit: expected at least 1, got 0"),
        (["--model", "MODEL", "--data", "DATA", "--limit", "1"], "samples: 1 given, of which 1 would be held out"),
        (["--model", "MODEL", "--data", "DATA", "--batch", "0"], "batch: expected an integer of at least 1"),
        (["--model", "MODEL", "--data", "DATA", "--holdout", "1"], "holdout: expected a share"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, model: Path, data: Path) -> None:
    named = {"MODEL": str(model), "DATA": str(data)}
    assert said in one_line(call("calibrate", *[named.get(part, part) for part in arguments]))


def test_a_bad_line_is_named_before_the_model_is_read(data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(data.read_text().replace('"0.png"', '"gone.png"'))
    assert "bad.jsonl, line 1: image: there is no file" in one_line(call("diagnose", "--model", "x", "--data", bad))


def test_nothing_is_written_when_it_fails(model: Path, data: Path, tmp_path: Path) -> None:
    one_line(call("calibrate", "--model", model, "--data", data, "--budget", "99%", "--out", tmp_path / "s.json"))
    assert not list(tmp_path.iterdir())


def test_processes_share_the_samples(model: Path, data: Path, tmp_path: Path) -> None:
    """Two processes: one voice, and in everything what one process finds; each journal holds a part of the answers."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29518"]
    arguments = ["calibrate", "--model", model, "--data", data, "--answer-tokens", "2", "--device", "cpu", "--json"]
    files = ["--out", tmp_path / "s.json", "--resume", tmp_path / "journal"]
    run = subprocess.run(
        [*command, "-m", "opskip_compile", *map(str, [*arguments, *files])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    whole, processor = load_checkpoint(model)
    alone = opskip.calibrate(whole, data, processor=processor, answer_tokens=2)
    assert opskip.Schedule.load(tmp_path / "s.json").to_dict() == alone.schedule.to_dict()
    wanted = json.loads(json.dumps(alone.report))
    assert {k: v for k, v in report.items() if k != "spent"} == {k: v for k, v in wanted.items() if k != "spent"}
    assert report["spent"]["flops"] == pytest.approx(wanted["spent"]["flops"], rel=0.2)  # of both together
    assert (tmp_path / "journal.1").exists()


@pytest.fixture(scope="module")
def diagnosis() -> opskip.Diagnosis:
    whole, _ = deaf_after(3)
    return opskip.diagnose(whole, samples("llava", 2), answer_tokens=2)


def test_diagnosis_tells_large_updates_that_nobody_reads(diagnosis: opskip.Diagnosis) -> None:
    """Of five layers the last three are unread, and the updates of their FFNs are the largest."""
    assert [row.silent for row in diagnosis.rows[2:]] == [True] * 3
    assert not any(row.silent for row in diagnosis.rows[:2])
    assert all(row.of("layer").divergence == 0 for row in diagnosis.rows[2:])
    assert all(abs(row.of("layer").turned) < 1e-6 for row in diagnosis.rows[2:])
    assert min(r.of("ffn").update for r in diagnosis.rows[2:]) > max(r.of("ffn").update for r in diagnosis.rows[:2])
    for row in diagnosis.rows[:2]:
        assert row.of("layer").divergence > SILENT * diagnosis.rows[0].of("layer").divergence
        assert row.of("attention").turned > 0


def test_diagnosis_as_data_table_and_plot(diagnosis: opskip.Diagnosis, tmp_path: Path) -> None:
    data = json.loads(json.dumps(diagnosis.to_dict()))
    assert [layer["silent"] for layer in data["layers"]] == [row.silent for row in diagnosis.rows]
    assert diagnosis.table().row_count == 5
    drawn = draw.diagnosis_figure(diagnosis.title, diagnosis.rows)
    lines = {line.get_gid(): line for axes in drawn.axes for line in axes.lines}
    assert list(lines["update-ffn"].get_ydata()) == [row.of("ffn").update for row in diagnosis.rows]
    assert list(lines["effect-layer"].get_ydata())[:2] == [row.of("layer").divergence for row in diagnosis.rows[:2]]
    diagnosis.plot(tmp_path / "d.svg")
    assert (tmp_path / "d.svg").read_text().count("<svg") == 1


def test_diagnose_from_the_shell(model: Path, data: Path, tmp_path: Path) -> None:
    result = call("diagnose", "--model", model, "--data", data, "--answer-tokens", "2", "--plot", tmp_path / "d.png")
    assert result.exit_code == 0, result.output
    assert "answer-silent" not in result.stderr
    assert re.search(r"│ +1 │ +[0-9.]+ │ 0.00e\+00 ", result.stdout)  # nothing reads the last layer's visual rows
    assert (tmp_path / "d.png").exists()
    parsed = json.loads(call("diagnose", "--model", model, "--data", data, "--answer-tokens", "2", "--json").stdout)
    assert parsed["samples"] == 6


@pytest.fixture(scope="module")
def calibrated() -> opskip.CalibrationResult:
    whole, _ = deaf_after(3)
    return opskip.calibrate(whole, samples("llava", 5), 0.4, answer_tokens=2)


def test_shares_as_the_library_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    """The same default, `none`, and one line on anything else."""
    default = inspect.signature(command.calibrate).parameters["shares"].default
    assert command._shares(default) == opskip.CalibrationConfig().shares
    assert command._shares("none") == ()
    with pytest.raises(
        opskip.OpSkipError, match="shares: expected numbers with commas between them, or none, got 'few'"
    ):
        command._shares("few")


def test_plot_shows_what_was_found(calibrated: opskip.CalibrationResult) -> None:
    drawn = draw.figure(calibrated)
    lines = {line.get_gid(): line for axes in drawn.axes for line in axes.lines if line.get_gid()}
    assert {"front", "chosen", "without shares", "whole layers", "random", "late"} <= set(lines)
    cuts = [100 * choice.cut for choice in calibrated.front if choice.cut > 0]
    assert list(lines["front"].get_xdata()) == cuts
    assert lines["chosen"].get_xdata()[0] == pytest.approx(100 * calibrated.chosen.cut)
    assert len(drawn.axes[0].patches) == len(calibrated.chosen.kept)


def test_page_is_whole_and_safe(calibrated: opskip.CalibrationResult) -> None:
    text = page.render(calibrated)
    assert text.count("<svg") == 1
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["']https?:""", text)
    assert text.count('class="chosen"') == 1
    assert text.count('class="skip"') == len(calibrated.chosen.kept)
    rows = sum(len(choices) for choices in calibrated.controls.values())
    assert text.count("<tr") > rows + len(calibrated.front)


def test_page_and_plot_are_the_same_every_time(calibrated: opskip.CalibrationResult, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        calibrated.to_html(tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_names_are_escaped(calibrated: opskip.CalibrationResult) -> None:
    from dataclasses import replace

    evil: Any = {**calibrated.about, "model": "<script>alert(1)</script>"}
    assert "<script" not in page.render(replace(calibrated, about=evil))
