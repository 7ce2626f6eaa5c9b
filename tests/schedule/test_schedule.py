"""Schedules: what spec text, files and rules mean, and that every refusal names the field."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opskip_compile.errors import OpSkipError, ScheduleError
from opskip_compile.schedule.left_out import LeftOut
from opskip_compile.schedule.rules import Late, LayerStates, Rule
from opskip_compile.schedule.schedule import Schedule

FILE: dict[str, Any] = {
    "format": "opskip-schedule",
    "version": 1,
    "name": "made by hand",
    "model": {"architecture": "qwen3_vl", "num_layers": 8, "hidden_size": 192, "intermediate_size": 512},
    "rules": [
        {"layers": "6-7", "skip": ["attention", "ffn"], "rows": "through_visual"},
        {"layers": "2,4", "skip": ["attention"], "rows": "visual"},
        {"layers": "3", "skip": ["ffn"], "rows": "visual"},
    ],
    "provenance": {"samples": 64, "note": "é", "scores": [0.5, None]},
}


def states(spec: str, num_layers: int) -> str:
    """One letter for each layer; capital where the rows are through_visual."""
    out = ""
    for layer in Schedule.from_spec(spec).resolve(num_layers):
        letter = {"full": ".", "attend": "a", "transform": "t", "silent": "s"}[layer.state]
        out += letter.upper() if LeftOut("through_visual") in (layer.attention, layer.ffn) else letter
    return out


@pytest.mark.parametrize(
    ("spec", "num_layers", "expected"),
    [
        ("none", 4, "...."),
        ("silent:2-3 transform:0 attend:1", 4, "tass"),
        ("silent@through_visual:2,3 attend:0", 4, "a.SS"),
        ("transform:1 attend:1", 3, ".s."),
        ("silent:1 transform:1", 3, ".s."),
        ("transform:1\n\tattend@visual:0", 2, "at"),
        ("late:0", 4, "...."),
        ("late:0.5", 5, "..sss"),
        ("late:0.33", 36, "." * 24 + "s" * 12),
        ("late:.1", 4, "...."),
        ("late:1", 3, "sss"),
        ("late@through_visual:0.5 transform:0", 4, "t.SS"),
        ("late:0.5 attend:3", 4, "..ss"),
    ],
)
def test_spec_means_these_layer_states(spec: str, num_layers: int, expected: str) -> None:
    assert states(spec, num_layers) == expected


def test_one_layer_can_use_both_row_sets() -> None:
    schedule = Schedule.from_spec("transform:0 attend@through_visual:0")
    assert schedule.resolve(1) == (LayerStates(attention=LeftOut("visual"), ffn=LeftOut("through_visual")),)
    assert schedule.resolve(1)[0].state == "silent"
    assert len(schedule.rules) == 2


@pytest.mark.parametrize(
    ("spec", "normal"),
    [
        ("none", "none"),
        ("late:0", "none"),
        ("late:1e-3", "late:0.001"),
        ("late@visual:.5", "late:0.5"),
        ("attend:6 transform:18,17,2,4 silent:24-35", "silent:24-35 transform:2,4,17-18 attend:6"),
        ("silent@through_visual:3,2,1 silent:0", "silent:0 silent@through_visual:1-3"),
        ("transform:1-3 attend:2-4", "silent:2-3 transform:1 attend:4"),
    ],
)
def test_spec_round_trip_is_the_normal_form(spec: str, normal: str) -> None:
    schedule = Schedule.from_spec(spec)
    assert schedule.to_spec() == normal
    assert Schedule.from_spec(normal) == schedule
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    assert schedule.is_empty == (normal == "none")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "spec: expected text"),
        ("  ", "spec: expected text"),
        ("qwen3-vl-8b/21", "preset: there is no 'qwen3-vl-8b/21', the nearest is 'qwen3-vl-8b/20'"),
        ("qwen3-vl-8b-20", "preset: there is no 'qwen3-vl-8b-20', the nearest is 'qwen3-vl-8b/20'"),
        ("silent", "preset: there is no 'silent'"),
        ("none silent:1", "spec: 'none': state: "),
        ("quiet:1", "spec: 'quiet:1': state: expected one of silent, transform, attend, late"),
        ("silent:", "spec: 'silent:': layers: "),
        ("silent:1,,2", "layers: expected layers such as"),
        ("silent:1, 2", "layers: expected layers such as"),
        ("silent:-1", "layers: expected layers such as"),
        ("silent:1.5", "layers: expected layers such as"),
        ("silent:٣", "layers: expected layers such as"),
        ("silent:5-3", "layers: expected a range"),
        ("silent:0-999999999", "layers: expected a range inside 0-9999"),
        ("silent:10000", "layers: expected a range inside 0-9999"),
        ("silent:" + "9" * 5000, "layers: expected layers such as"),
        ("silent:3,1-4", "layers[3]: layer 3 is named twice"),
        ("silent:" + "0-9999," * 50 + "1", "layers: names a layer twice"),
        ("silent@all:1", "rows: expected one of visual, through_visual, and keep=SHARE, got 'all'"),
        ("silent@:1", "rows: nothing after '@'"),
        ("silent@0.25:1", "rows: expected one of visual, through_visual, and keep=SHARE, got '0.25'"),
        ("silent@,:1", "rows: expected one of"),
        (
            "silent:1 transform@keep=0.5:1",
            "rules[1].keep: layer 1 attention is visual,keep=0.5, another rule says visual",
        ),
        (
            "attend@keep=0.5:all attend@keep=0.25:2",
            "keep: layer 2 ffn is visual,keep=0.25, another rule says visual,keep=0.5",
        ),
        ("late:1.5", "fraction: expected a number from 0 to 1, got 1.5"),
        ("late:-0.5", "fraction: "),
        ("late:nan", "fraction: "),
        ("late:inf", "fraction: "),
        ("late:", "fraction: "),
        ("late:0.5 late:0.5", "late: named twice"),
        ("silent:1 transform@through_visual:1", "spec: rules[1].rows: layer 1 attention is through_visual"),
        ("silent:1 " * 1001, "spec: 1001 items"),
    ],
)
def test_bad_spec_names_the_field(spec: str, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.from_spec(spec)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


MISSING, HUGE = object(), {"too many digits to print": 10**5000}


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("format", MISSING, "format: missing"),
        ("format", "gguf", "format: expected one of opskip-schedule, got 'gguf'"),
        ("format", ["opskip-schedule"], "format: "),
        ("version", 3, "version: expected 1 or 2, got 3"),
        ("version", True, "version: expected 1 or 2, got True"),
        ("version", 1.0, "version: expected 1 or 2, got 1.0"),
        ("rules.1.keep", 0.5, "rules[1].keep: needs version 2 of the format, the file says version 1"),
        ("rules", MISSING, "rules: missing"),
        ("rules", {}, "rules: expected a list, got a dict"),
        ("rules", "silent:1", "rules: expected a list"),
        ("rules", [{}] * 1001, "rules: 1001 items"),
        ("rule", {"layers": "1", "skip": ["ffn"]}, "rule: unknown key"),
        ("rules.1", [1], "rules[1]: expected a table"),
        ("rules.1.colour", "red", "rules[1].colour: unknown key"),
        ("rules.1.a\nb", "red", "rules[1].'a\\nb': unknown key"),
        ("rules.1.layers", MISSING, "rules[1].layers: missing"),
        ("rules.1.skip", MISSING, "rules[1].skip: missing"),
        ("rules.2.layers", "0-999999999", "rules[2].layers: expected a range"),
        ("rules.2.layers", "", "rules[2].layers: "),
        ("rules.2.layers", [], "rules[2].layers: names no layer"),
        ("rules.2.layers", 3, "rules[2].layers: expected a list, got 3"),
        ("rules.2.layers", None, "rules[2].layers: expected a list, got None"),
        ("rules.2.layers", [0, True], "rules[2].layers[1]: expected a layer from 0 to 9999, got True"),
        ("rules.2.layers", [-1], "rules[2].layers[0]: expected a layer"),
        ("rules.2.layers", [1.0], "rules[2].layers[0]: expected a layer"),
        ("rules.2.layers", [float("nan")], "rules[2].layers[0]: expected a layer"),
        ("rules.2.layers", [HUGE], "rules[2].layers[0]: expected a layer"),
        ("rules.2.layers", [3, 3], "rules[2].layers[1]: layer 3 is named twice"),
        ("rules.2.layers", [0] * 10_001, "rules[2].layers: 10001 items"),
        ("rules.2.layers", [8], "rules[2].layers: layer 8 is not in a model of 8 layers"),
        ("rules.0.skip", "ffn", "rules[0].skip: expected a list"),
        ("rules.0.skip", [], "rules[0].skip: expected one or both"),
        ("rules.0.skip", ["ffn", "ffn"], "rules[0].skip: expected one or both"),
        ("rules.0.skip", ["ffn", "mlp"], "rules[0].skip[1]: expected one of attention, ffn, got 'mlp'"),
        ("rules.0.skip", [["ffn"]], "rules[0].skip[0]: "),
        ("rules.0.rows", "all", "rules[0].rows: expected one of"),
        ("rules.0.rows", None, "rules[0].rows: expected one of"),
        ("rules.2.layers", "4,6", "rules[2].rows: layer 6 ffn is visual, another rule says through_visual"),
        ("late", 0.5, "late: expected a table"),
        ("late", {}, "late.fraction: missing"),
        ("late", {"fraction": True}, "late.fraction: expected a number from 0 to 1"),
        ("late", {"fraction": float("nan")}, "late.fraction: "),
        ("late", {"fraction": 10**400}, "late.fraction: "),
        ("late", {"fraction": 0.5, "rows": 1}, "late.rows: "),
        ("late", {"fraction": 0.5, "layers": "1"}, "late.layers: unknown key"),
        ("late", {"fraction": 0.5}, "late.rows: layer 6 attention is visual"),
        ("model", None, "model: expected a table"),
        ("model.num_layer", 8, "model.num_layer: unknown key"),
        ("model.num_layers", True, "model.num_layers: expected a positive integer"),
        ("model.num_layers", 0, "model.num_layers: expected a positive integer"),
        ("model.num_layers", 7, "rules[0].layers: layer 7 is not in a model of 7 layers"),
        ("model.num_layers", 10**9, "num_layers: at most 10000"),
        ("provenance.seed", HUGE, "provenance: expected JSON values only"),
        ("model.hidden_size", HUGE, "model.hidden_size: at most 1000000000, got a huge integer"),
        ("model.hidden_size", 1.5, "model.hidden_size: expected a positive integer"),
        ("model.architecture", 3, "model.architecture: expected text"),
        ("provenance", [], "provenance: expected a table"),
        ("provenance.loss", float("nan"), "provenance: expected JSON values only"),
        ("provenance.loss", {1, 2}, "provenance: expected JSON values only"),
        ("name", 3, "name: expected a str"),
    ],
)
def test_bad_table_names_the_field(where: str, value: Any, message: str) -> None:
    data: Any = copy.deepcopy(FILE)
    inner = data
    *folders, last = where.split(".")
    for key in folders:
        inner = inner[int(key) if key.isdigit() else key]
    value = 10**5000 if value is HUGE else [10**5000] if value == [HUGE] else value
    if value is MISSING:
        del inner[last]
    else:
        inner[int(last) if last.isdigit() else last] = value
    with pytest.raises(ScheduleError) as caught:
        Schedule.from_dict(data)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_provenance_nested_too_deeply() -> None:
    deep: dict[str, Any] = {}
    for _ in range(200_000):
        deep = {"a": deep}
    with pytest.raises(ScheduleError, match="provenance: nested too deeply"):
        Schedule(provenance=deep)


@pytest.mark.parametrize("value", [None, 3, ["silent:1"], b"none", object()], ids=lambda value: type(value).__name__)
def test_of_refuses_other_types(value: Any) -> None:
    with pytest.raises(ScheduleError, match="schedule: spec: expected text"):
        Schedule.of(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file: not JSON"),
        (b"silent:1", "file: not JSON"),
        (b"\xff\xfe{}", "file: not JSON"),
        (b"[" * 100_000, "file: nested too deeply"),
        (b'{"a":' * 100_000, "file: nested too deeply"),
        (b"[]", "schedule: expected a table"),
        (b"null", "schedule: expected a table"),
        (b'{"version": NaN}', "file: NaN is not JSON"),
        (b'{"version": -Infinity}', "file: -Infinity is not JSON"),
        (b'{"rules": [], "rules": []}', "'rules': named twice"),
        (b'{"version": ' + b"1" * 5000 + b"}", ": "),
        (b" " * (1 << 20) + b"{}", "file: longer than 1048576 bytes"),
        (b"__import__('os').abort()", "file: not JSON"),
    ],
)
def test_bad_file_is_a_schedule_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "schedule.json"
    path.write_bytes(content)
    with pytest.raises(ScheduleError) as caught:
        Schedule.load(path)
    assert message in str(caught.value)
    assert "schedule.json" in str(caught.value)


def test_what_is_not_a_file_is_a_schedule_error(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.json"
    os.mkfifo(fifo)
    for path in (tmp_path, fifo):
        with pytest.raises(ScheduleError, match="found a folder or a device"):
            Schedule.load(path)
    with pytest.raises(ScheduleError, match=r"gone\.json': file: No such file"):
        Schedule.of(str(tmp_path / "gone.json"))
    with pytest.raises(ScheduleError, match="path: expected a path, got 0"):
        Schedule.load(0)  # type: ignore[arg-type]
    with pytest.raises(ScheduleError, match="file: "):
        Schedule.load("a\0b.json")


def test_save_and_load(tmp_path: Path) -> None:
    schedule = Schedule.from_dict(FILE)
    path = tmp_path / "schedule.json"
    path.write_text("something older and much longer than nothing")
    schedule.save(path)
    text = path.read_bytes()
    assert json.loads(text) == FILE
    assert text.endswith(b"}\n")
    assert [item.name for item in tmp_path.iterdir()] == ["schedule.json"]
    loaded = Schedule.load(path)
    assert (loaded, loaded.name, loaded.provenance) == (schedule, schedule.name, schedule.provenance)
    loaded.save(path)
    assert path.read_bytes() == text
    for obj in (path, str(path), FILE, schedule):
        assert Schedule.of(obj) == schedule


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "schedule.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OpSkipError, match=r"schedule\.json: can't be written: disk full"):
        Schedule().save(path)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["schedule.json"]


def test_equality_is_over_what_it_does() -> None:
    one = Schedule(rules=(Rule((3, 1), ("ffn", "attention")),), num_layers=4, name="a", provenance={"x": 1})
    same = Schedule(rules=(Rule((1, 3), ("ffn",)), Rule((1, 3), ("attention",))), model={"num_layers": 4})
    assert (one, hash(one), one.digest, repr(one)) == (same, hash(same), same.digest, repr(same))
    others = [
        Schedule(rules=one.rules),
        Schedule(rules=one.rules, num_layers=5),
        Schedule(rules=one.rules, num_layers=4, model={"hidden_size": 64}),
        Schedule(rules=(Rule((1, 3), ("attention", "ffn"), "through_visual"),), num_layers=4),
        Schedule(rules=one.rules, late=Late(0.5)),
    ]
    assert len({one, *others}) == 6
    assert len({one.digest, *(other.digest for other in others)}) == 6
    assert len({repr(one), *(repr(other) for other in others)}) == 6
    assert one != "silent:1,3"


def test_late_with_a_known_count_is_its_layers() -> None:
    known = Schedule(late=Late(0.5), num_layers=4)
    assert known == Schedule(rules=(Rule((2, 3), ("attention", "ffn")),), num_layers=4)
    assert known.late is None


def test_copies_and_pickles_keep_everything() -> None:
    schedule = Schedule.from_dict(FILE)
    for twin in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), copy.copy(schedule)):
        assert twin.to_dict() == schedule.to_dict() == FILE
        assert (twin, hash(twin)) == (schedule, hash(schedule))


def test_digest_and_repr_are_the_same_in_every_process() -> None:
    code = "from opskip_compile import Schedule; s = Schedule.from_spec('late:0.5 attend:1'); print(s.digest, s)"
    root = Path(__file__).parents[2]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"  # another one than this process has
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed},
        cwd=root,
        capture_output=True,
        check=True,
    )
    schedule = Schedule.from_spec("late:0.5 attend:1")
    assert run.stdout == f"{schedule.digest} {schedule}\n".encode()


def test_a_schedule_cannot_be_changed() -> None:
    given: dict[str, Any] = {"scores": [1]}
    schedule = Schedule(model={"num_layers": 4}, provenance=given)
    given["scores"].append(2)
    assert schedule.provenance["scores"] == [1]
    with pytest.raises(TypeError):
        schedule.model["num_layers"] = 5  # type: ignore[index]
    with pytest.raises(AttributeError):
        schedule.num_layers = 5  # type: ignore[misc]
    schedule.to_dict()["provenance"]["scores"].append(2)
    assert schedule.provenance["scores"] == [1]


@pytest.mark.parametrize(
    ("schedule", "num_layers", "message"),
    [
        (Schedule.from_dict(FILE), 36, "made for 8 layers, the model has 36"),
        (Schedule.from_spec("attend:36"), 36, "layer 36 is not in a model of 36 layers"),
        (Schedule.from_spec("late:0.5 attend@through_visual:3"), 4, "late.rows: layer 3 ffn is visual"),
        (Schedule(), 0, "num_layers: expected a positive integer, got 0"),
        (Schedule(), True, "num_layers: expected a positive integer, got True"),
        (Schedule(), 10_001, "num_layers: at most 10000"),
    ],
)
def test_resolve_refuses(schedule: Schedule, num_layers: int, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        schedule.resolve(num_layers)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rules": [("1", "ffn")]}, "rules[0]: expected a Rule, got a tuple"),
        ({"late": 0.5}, "late: expected a Late, got 0.5"),
        ({"num_layers": 4, "model": {"num_layers": 5}}, "num_layers: 4, but model.num_layers is 5"),
        ({"num_layers": "4"}, "num_layers: expected a positive integer, got '4'"),
    ],
)
def test_bad_arguments_name_the_field(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule(**arguments)
    assert message in str(caught.value)
