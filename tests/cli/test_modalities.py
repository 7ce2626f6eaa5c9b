"""``--modalities``: a small Qwen2-Audio from a folder, asked about WAV files, through every command that takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import opskip_compile as opskip
from opskip_compile.models.checkpoint import load_checkpoint
from opskip_compile.models.generation import greedy
from opskip_compile.models.jsonl import encode, read_lines
from opskip_compile.models.prompts import Encoder
from tests.helpers.commands import call, one_line
from tests.helpers.families import IMAGE
from tests.helpers.sounds import ROWS, make_audio_checkpoint, write_wav

LAYERS, TOKENS = 3, 3
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


def oracle_answers(folder: Path, data: Path, spec: str) -> list[str]:
    """By the oracle's definition, one prompt at a time."""
    model, processor = load_checkpoint(folder)
    encoder, answers = Encoder(processor), []
    for line in read_lines(data):
        inputs = encode([line], encoder)
        with opskip.oracle(model, opskip.Schedule.from_spec(spec), inputs["input_ids"] == IMAGE):
            (tokens,) = greedy(model, inputs, TOKENS, (line.name,))
        answers.append(encoder.text(tokens))
    return answers


QUICK = ("--answer-tokens", "1", "--no-controls", "--no-stability", "--no-whole-front", "--shares", "none")


def test_calibrate(model: Path, data: Path, tmp_path: Path) -> None:
    """The schedule means audio, and compiled it does what the oracle says."""
    asked = ("calibrate", "--model", model, "--data", data, "--modalities", "audio", "--budget", "0.2", *QUICK)
    ran = call(*asked, "--out", tmp_path / "s.json")
    assert ran.exit_code == 0, ran.output
    schedule = opskip.Schedule.load(tmp_path / "s.json")
    assert schedule.modalities == ("audio",) and not schedule.is_empty
    assert schedule.provenance["visual_rows"] == ROWS * 3 / 4
    whole, processor = load_checkpoint(model)
    inputs = encode(read_lines(data)[:1], Encoder(processor))
    with torch.no_grad():
        with opskip.oracle(whole, schedule, inputs["input_ids"] == IMAGE):
            want = whole(**inputs).logits
        opskip.compile(whole, schedule, options={"lower": "eager"})
        got = whole(**inputs).logits
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert opskip.last_report().skipped


def test_diagnose(model: Path, data: Path) -> None:
    ran = call("diagnose", "--model", model, "--data", data, "--modalities", "audio", "--answer-tokens", "1", "--json")
    assert ran.exit_code == 0, ran.output
    layers = json.loads(ran.stdout)["layers"]
    assert len(layers) == LAYERS
    assert layers[-1]["silent"] and not layers[0]["silent"]  # no row reads what the last layer makes of a sound


def test_eval(model: Path, data: Path, tmp_path: Path) -> None:
    """Accuracy and agreement, counted from the oracle's answers; dropped tokens are those of the sounds."""
    dense, skipped = (oracle_answers(model, data, spec) for spec in ("none", f"{SPEC} modalities=audio"))
    entries = [json.loads(line) for line in data.read_text().splitlines()]
    (data.parent / "asked.jsonl").write_text(
        "\n".join(json.dumps({**entry, "answer": said}) for entry, said in zip(entries, skipped, strict=True))
    )
    ran = call(
        *("eval", "--model", model, "--data", data.parent / "asked.jsonl", "--modalities", "audio", "--eager"),
        *("--rounds", "0", "--resamples", "20", "--answer-tokens", TOKENS, "--batch", "2"),
        *("--schedule", SPEC, "--method", "vtw", "--method", "late", "--cut", "0.2", "--json"),
    )
    assert ran.exit_code == 0, ran.output
    figures = json.loads(ran.stdout)
    outcomes = {outcome["method"]: outcome for outcome in figures["outcomes"]}
    same = sum(a == b for a, b in zip(dense, skipped, strict=True)) / 6
    assert outcomes[SPEC]["accuracy"] == 1
    assert outcomes[SPEC]["agreement"] == outcomes["dense"]["accuracy"] == pytest.approx(same, abs=1e-6)
    assert outcomes[SPEC]["runs"][0]["spec"] == f"{SPEC} modalities=audio"
    assert outcomes["late"]["runs"][0]["spec"].endswith("modalities=audio")
    assert outcomes["vtw"]["flops_cut"] >= 0.2
    assert figures["about"]["modalities"] == ["audio"]


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
