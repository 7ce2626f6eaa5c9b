"""``--modalities``: a small Qwen2-Audio from a folder, as far as commands look before they measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import opskip_compile as opskip
from opskip_compile.models.checkpoint import load_checkpoint
from opskip_compile.models.jsonl import read_lines
from tests.helpers.commands import call, one_line
from tests.helpers.sounds import make_audio_checkpoint, write_wav

LAYERS = 3
SPEC = "silent:1 attend:0"


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_audio_checkpoint(tmp_path_factory.mktemp("model"), LAYERS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions about tones, three of them half as long."""
    folder = tmp_path_factory.mktemp("data")
    entries = []
    for i in range(6):
        write_wav(folder / f"{i}.wav", 200 * (i + 1), seconds=1 - i % 2 / 2)
        entries.append({"audio": f"{i}.wav", "prompt": ("what is this", "is this what what")[i // 3]})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return folder / "data.jsonl"


def test_inspect_and_flops(model: Path) -> None:
    rows = ("--visual", "16", "--text", "4")
    ran = call("inspect", model, "--schedule", SPEC, "--modalities", "audio", *rows[2:], "--json")
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)["report"]
    assert sum(operator["skipped"] for operator in report["operators"]) == 3
    ran = call("inspect", model, "--modalities", "audio", *rows)
    assert ran.exit_code == 0, ran.output
    assert ran.stderr == "opskip: no schedule was given: late:0.33 modalities=audio, which is not calibrated\n"
    ran = call("flops", "--config", model, "--schedule", SPEC, "--modalities", "audio", *rows, "--json")
    assert json.loads(ran.stdout)["schedule"] == f"{SPEC} modalities=audio"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("calibrate", "--model", "MODEL", "--data", "DATA"), "; it has rows of audio: modalities=audio"),
        (("diagnose", "--model", "MODEL", "--data", "DATA", "--modalities", "image"), "names no image token, so its"),
        (("calibrate", "--model", "x", "--data", "DATA", "--modalities", "sound"), "modalities: expected one of image"),
        (("calibrate", "--model", "demo", "--modalities", "audio"), "modalities: the samples were made for image and"),
        (("eval", "--model", "x", "--data", "DATA", "--modalities", "sound"), "modalities: expected one of image"),
        (("inspect", "MODEL"), "it has rows of audio, which a schedule means with modalities=audio"),
        (("inspect", "MODEL", "--modalities", "sound"), "modalities: expected one of image, video, audio"),
        (
            ("flops", "--config", "MODEL", "--schedule", "FILE", "--modalities", "audio"),
            "FILE' says itself that it means rows of image and video",
        ),
        (
            ("inspect", "MODEL", "--schedule", "late:0.5 modalities=image", "--modalities", "audio"),
            "modalities: 'late:0.5 modalities=image' says itself that it means rows of image",
        ),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], said: str, model: Path, data: Path, tmp_path: Path) -> None:
    opskip.Schedule.from_spec("silent:1").save(tmp_path / "s.json")
    named: dict[str, Any] = {"MODEL": str(model), "DATA": str(data), "FILE": str(tmp_path / "s.json")}
    said = said.replace("FILE", named["FILE"])
    assert said in one_line(call(*(named.get(part, part) for part in arguments)))


def test_a_schedule_for_other_rows_takes_no_part(model: Path, data: Path) -> None:
    lines = read_lines(data)
    whole, processor = load_checkpoint(model)
    asked = [type(line)(line.name, (), line.prompt, ("a",), line.task, line.sounds) for line in lines]
    with pytest.raises(opskip.OpSkipError, match="modalities: schedule 'mine' means rows of image and video, the eval"):
        opskip.evaluate(
            whole,
            asked,
            processor=processor,
            modalities="audio",
            schedules={"mine": "silent:1"},
            lower="eager",
            rounds=0,
        )
