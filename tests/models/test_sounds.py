"""Sounds in JSONL files: WAV files of every width as `numpy` reads them, and what is refused, by line and field."""

from __future__ import annotations

import json
import math
import wave
from pathlib import Path
from typing import Any

import pytest
import torch

from opskip_compile.errors import OpSkipError
from opskip_compile.evaluation.questions import checked_lines, task_rows
from opskip_compile.models.checkpoint import load_checkpoint
from opskip_compile.models.jsonl import encode, read_lines
from opskip_compile.models.prompts import Encoder
from opskip_compile.models.sounds import load_sound
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.families import IMAGE
from tests.helpers.sounds import RATE, ROWS, make_audio_checkpoint, write_wav

GOOD = {"audio": "tone.wav", "prompt": "what is this"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(load_checkpoint(make_audio_checkpoint(tmp_path_factory.mktemp("audio")))[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_wav(tmp_path / "tone.wav", 440)
    write_wav(tmp_path / "short.wav", 440, seconds=0.5)
    return tmp_path


def lines_of(folder: Path, *entries: Any) -> Any:
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return read_lines(folder / "data.jsonl")


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_is_read(width: int, tmp_path: Path) -> None:
    write_wav(tmp_path / "tone.wav", 440, seconds=0.1, rate=8000, width=width)
    sound = load_sound(tmp_path / "tone.wav")
    want = torch.tensor([0.5 * math.sin(2 * math.pi * 440 * i / 8000) for i in range(800)])
    assert (sound.rate, sound.values.dtype, sound.values.shape) == (8000, "float32", (800,))
    torch.testing.assert_close(torch.from_numpy(sound.values), want, rtol=0, atol=2.0 ** (1 - 8 * width) + 1e-6)


def test_channels_become_their_mean(tmp_path: Path) -> None:
    for channels in (1, 2):
        write_wav(tmp_path / f"{channels}.wav", 440, seconds=0.1, channels=channels)
    one, both = (load_sound(tmp_path / f"{channels}.wav").values for channels in (1, 2))
    assert both.shape == one.shape
    torch.testing.assert_close(torch.from_numpy(both), torch.from_numpy(one) / 2)


def test_the_processor_gets_them(encoder: Encoder, folder: Path) -> None:
    """A batch of different lengths: the features are those of the extractor alone, the rows follow the lengths."""
    lines = lines_of(folder, GOOD, {**GOOD, "audio": ["short.wav", "tone.wav"]})
    assert [len(line.sounds) for line in lines] == [1, 2] and not lines[0].images
    inputs = encode(lines, encoder)
    assert (inputs["input_ids"] == IMAGE).sum(1).tolist() == [ROWS, ROWS // 2 + ROWS]
    assert inputs["attention_mask"][:, -1].all() and not inputs["attention_mask"][0, 0]
    sounds = [load_sound(folder / name).values for name in ("tone.wav", "short.wav", "tone.wav")]
    alone = encoder.processor.feature_extractor(sounds, sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(inputs["input_features"], alone["input_features"])
    assert inputs["feature_attention_mask"].sum(1).tolist() == [32, 16, 32]


def test_without_a_chat_template(encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(folder, GOOD)
    monkeypatch.setattr(encoder.processor, "chat_template", None)
    for name in ("audio_bos_token", "audio_eos_token"):
        monkeypatch.setattr(encoder.processor, name, "")
    assert encode(lines, encoder)["input_ids"].tolist() == [[IMAGE] * ROWS + [3, 4, 5]]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"prompt": "a"}, "image: expected a path or URL, or images: a list of them"),
        ({"audio": 3, "prompt": "a"}, "audio: expected a path or URL, or a list of them"),
        ({"audio": [], "prompt": "a"}, "audio: expected a path or URL, or a list of them"),
        ({"audio": "gone.wav", "prompt": "a"}, "audio: there is no file 'FOLDER/gone.wav'"),
        ({"audio": "tone.wav", "images": [], "prompt": "a"}, "image: expected a path or URL"),
    ],
)
def test_a_bad_field_is_named(entry: Any, said: str, folder: Path) -> None:
    with pytest.raises(OpSkipError) as caught:
        lines_of(folder, GOOD, entry)
    assert str(caught.value).startswith("data.jsonl, line 2: " + said.replace("FOLDER", str(folder)))


def bad_files(folder: Path) -> None:
    write_wav(folder / "slow.wav", 440, rate=8000)
    whole = (folder / "tone.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[:-1000])
    (folder / "head.wav").write_bytes(whole[:20])
    (folder / "float.wav").write_bytes(whole[:20] + (3).to_bytes(2, "little") + whole[22:])
    (folder / "text.wav").write_text("no sound at all, but some text that is long enough")
    with wave.open(str(folder / "empty.wav"), "wb") as empty:
        empty.setparams((1, 2, RATE, 0, "NONE", ""))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("slow.wav", "slow.wav has 8000 values a second, the processor takes 16000: resample it"),
        ("cut.wav", "cut.wav: it is cut off"),
        ("head.wav", "head.wav: it ends too early"),
        ("float.wav", "float.wav: unknown format: 3; WAV files of whole numbers (PCM) are read"),
        ("text.wav", "text.wav: file does not start with RIFF id; WAV files of whole numbers (PCM) are read"),
        ("empty.wav", "empty.wav: it is empty"),
    ],
)
def test_a_sound_that_can_not_be_used_is_named_with_its_line(
    name: str, said: str, encoder: Encoder, folder: Path
) -> None:
    bad_files(folder)
    lines = lines_of(folder, GOOD, {**GOOD, "audio": ["tone.wav", name]})
    with pytest.raises(OpSkipError) as caught:
        encode(lines, encoder)
    assert str(caught.value).startswith("data.jsonl, line 2: audio: ")
    assert said in str(caught.value)


def test_what_the_processor_does_not_take(encoder: Encoder, folder: Path, image: Path, tmp_path: Path) -> None:
    sounds, pictures = lines_of(folder, GOOD), lines_of(folder, {"image": str(image), "prompt": "a"})
    with pytest.raises(OpSkipError, match=r"^data.jsonl, line 1: image: the Qwen2AudioProcessor takes none$"):
        encode(pictures, encoder)
    of_images = Encoder(load_checkpoint(make_checkpoint(tmp_path / "llava"))[1])
    with pytest.raises(OpSkipError, match=r"^data.jsonl, line 1: audio: the LlavaProcessor takes none$"):
        encode(sounds, of_images)


def test_questions_about_one_sound_belong_together(folder: Path) -> None:
    asked = [{**GOOD, "audio": name, "answer": "a"} for name in ("tone.wav", "short.wav", "tone.wav")]
    lines = lines_of(folder, *asked)
    assert task_rows(lines)["data"].groups == (0, 1, 0)
    assert len(checked_lines(lines, "data", None, answered=True)) == 3
    with pytest.raises(OpSkipError, match="line 1: the same sounds and prompt are in data too"):
        checked_lines(lines[:1], "calibration", None, unlike=lines[2:])
