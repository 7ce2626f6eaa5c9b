"""Whose rows a schedule means: in spec text, in files, in levels, and in configs of transformers."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from opskip_compile.errors import ScheduleError
from opskip_compile.schedule.chooser import BUCKETS, Chooser
from opskip_compile.schedule.modalities import MODALITIES, VISUAL, in_words, named_modalities, tokens_by_modality
from opskip_compile.schedule.schedule import Schedule

# Digests of schedules that say nothing of modalities, as they were before there were any.
DIGESTS = {"qwen3-vl-8b/20": "cccb28da51da0baf", "silent:1": "1d6c4598a1252cd1", "none": "3ad0b7a5dc759a59"}


@pytest.mark.parametrize(
    ("spec", "modalities", "normal"),
    [
        ("late:0.5", VISUAL, "late:0.5"),
        ("late:0.5 modalities=video,image", VISUAL, "late:0.5"),
        ("modalities=audio late:0.5", ("audio",), "late:0.5 modalities=audio"),
        ("silent:1 modalities=audio,image", ("image", "audio"), "silent:1 modalities=image,audio"),
        ("silent:1 modalities=all", MODALITIES, "silent:1 modalities=image,video,audio"),
        ("none modalities=audio", ("audio",), "none modalities=audio"),
    ],
)
def test_spec_text(spec: str, modalities: tuple[str, ...], normal: str) -> None:
    schedule = Schedule.from_spec(spec)
    assert schedule.modalities == modalities
    assert schedule.to_spec() == normal
    assert Schedule.from_spec(normal) == schedule


def test_a_preset_takes_them() -> None:
    preset = Schedule.from_spec("qwen3-vl-8b/20 modalities=all")
    assert preset.modalities == MODALITIES
    assert preset.rules == Schedule.preset("qwen3-vl-8b/20").rules
    assert Schedule.preset("qwen3-vl-8b/20").modalities == VISUAL


@pytest.mark.parametrize("spec", DIGESTS)
def test_the_default_changes_no_digest_and_no_file(spec: str) -> None:
    schedule = Schedule.from_spec(spec)
    assert schedule.digest == DIGESTS[spec]
    assert "modalities" not in schedule.to_dict()
    assert schedule.to_dict()["version"] == 1
    assert replace(schedule, modalities="image,video") == schedule


def test_they_are_a_part_of_what_a_schedule_does() -> None:
    one, other = Schedule.from_spec("late:0.5"), Schedule.from_spec("late:0.5 modalities=audio")
    assert one != other
    assert one.digest != other.digest
    data = other.to_dict()
    assert (data["version"], data["modalities"]) == (2, ["audio"])
    assert Schedule.from_dict(data) == other
    assert copy.deepcopy(other) == other


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("modalities=audio", "spec: expected text"),
        ("late:1 modalities=sound", "spec: modalities: expected one of image, video, audio, got 'sound'"),
        ("late:1 modalities=", "spec: modalities: expected one of"),
        ("late:1 modalities=audio,audio", "spec: modalities: expected some of image, video, audio, each once, or all"),
        ("late:1 modalities=audio modalities=all", "spec: modalities: named twice"),
    ],
)
def test_bad_spec_text_names_the_field(spec: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        Schedule.from_spec(spec)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "modalities: expected some of"),
        (["audio", 3], "modalities: expected one of image, video, audio, got 3"),
        ({"audio": 1}, "modalities: expected a list"),
        (7, "modalities: expected a list, got 7"),
    ],
)
def test_bad_values_name_the_field(value: Any, message: str) -> None:
    with pytest.raises(ScheduleError, match=f"^{message}"):
        Schedule(modalities=value)


def test_a_file_of_version_1_has_none() -> None:
    data = {**Schedule.from_spec("silent:1 modalities=audio").to_dict(), "version": 1}
    with pytest.raises(ScheduleError, match=r"^modalities: needs version 2 of the format"):
        Schedule.from_dict(data)


def levels(*specs: str, **more: Any) -> Schedule:
    chooser = Chooser(((0.0,) * (2 * BUCKETS),) * 2, (0.0, 0.0), (0.0, 0.0), 0.0)
    return Schedule(levels=tuple(map(Schedule.from_spec, specs)), chooser=chooser, **more)


def test_levels_have_those_of_their_schedule() -> None:
    schedule = levels("none", "attend:1", modalities="audio")
    assert [level.modalities for level in schedule.levels] == [("audio",)] * 2
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    assert levels("none", "attend:1") != schedule
    with pytest.raises(ScheduleError, match=r"^levels\[1\]: means audio, which modalities has to say"):
        levels("none", "attend:1 modalities=audio")


def test_tokens_of_configs() -> None:
    config = SimpleNamespace(image_token_id=7, image_token_index=8, audio_token_index=9, video_token_id=None)
    assert tokens_by_modality(config) == {"image": {7, 8}, "audio": {9}}
    assert list(named_modalities(config)) == ["image", "video", "audio"]
    assert tokens_by_modality(None) == named_modalities(None) == {}


def test_in_words() -> None:
    assert [in_words(MODALITIES[:n]) for n in (1, 2, 3)] == ["image", "image and video", "image, video and audio"]
