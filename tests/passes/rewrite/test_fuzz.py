"""Anything may stand in a schedule, a file, the options or on the command line: it is read, or refused in one line.

Only subclasses of `OpSkipError` leave the package, and what is accepted survives being written and read again.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from opskip_compile import OpSkipError, Schedule, ScheduleError, Settings, presets
from opskip_compile.cli.main import app

settings.register_profile("fuzz", derandomize=True, deadline=None, print_blob=True, database=None)
FUZZ = settings(
    settings.get_profile("fuzz"),
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ODD_NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 1e308, -0.0, 5e-324, math.inf, -math.inf, math.nan, True)
ODD_TEXT = (
    "",
    " ",
    "none",
    "\x00",
    "\ud800",
    "é",
    "\u0661",
    "\U0001d7cf",
    "\u30fc",
    "\u202e",
    "a" * 5000,
    "24-35",
    "../x.json",
    "%s",
    "{}",
    "-0",
)
numbers = st.sampled_from(ODD_NUMBERS) | st.integers() | st.floats()
texts = st.sampled_from(ODD_TEXT) | st.text(max_size=12)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.binary(max_size=4) | st.sampled_from([object(), {1, 2}, 1j, len]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(), inner, max_size=4),
    max_leaves=8,
)
layers = st.lists(
    st.integers(0, 12).map(str)
    | st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda p: f"{p[0]}-{p[1]}")
    | st.sampled_from(("", "-", "3-", "9999", "10000", "0-9999", "1" * 30, "\u0663", " 4", "+1", "1_0", "1e1")),
    max_size=4,
).map(",".join)
fractions = st.floats(0, 1).map(repr) | st.sampled_from(
    ("0.5", ".5", "1", "1e-3", "nan", "inf", "-0.1", "1e999", "0x1", "0_1")
)
items = st.builds(
    lambda state, rows, body: f"{state}{rows}:{body}",
    st.sampled_from(("silent", "transform", "attend", "late", "Silent", "full", "", "skip")),
    st.sampled_from(("", "", "", "@visual", "@through_visual", "@", "@all", "@@visual")),
    layers | fractions,
)
good_layers = st.lists(st.integers(0, 40), min_size=1, max_size=6).map(
    lambda found: ",".join(map(str, sorted({*found})))
)
good_items = st.builds(
    lambda state, rows, body: f"{state}{rows}:{body}",
    st.sampled_from(("silent", "transform", "attend")),
    st.sampled_from(("", "@through_visual")),
    good_layers,
)
specs = (
    st.lists(good_items, min_size=1, max_size=4).map(" ".join)
    | st.lists(good_items | items, min_size=1, max_size=4).map(" ".join)
    | st.lists(items | texts, max_size=4).map(" ".join)
    | texts
    | st.sampled_from([preset.name for preset in presets()])
)
FILE: dict[str, Any] = {
    "format": "opskip-schedule",
    "version": 1,
    "name": "made by hand",
    "model": {"architecture": "qwen3_vl", "num_layers": 8, "hidden_size": 192},
    "rules": [
        {"layers": "6-7", "skip": ["attention", "ffn"], "rows": "through_visual"},
        {"layers": [2, 4], "skip": ["attention"]},
    ],
    "late": {"fraction": 0.25, "rows": "through_visual"},
    "provenance": {"samples": 64, "scores": [0.5, None]},
}
KEYS = ("format", "version", "name", "model", "rules", "late", "provenance", "layers", "skip", "rows", "fraction")


def survives(schedule: Schedule, folder: Path) -> None:
    """Written and read again in every way, it is the same schedule."""
    path = folder / "schedule.json"
    schedule.save(path)
    again = [Schedule.load(path), Schedule.from_dict(schedule.to_dict()), pickle.loads(pickle.dumps(schedule))]
    for other in (*again, copy.deepcopy(schedule)):
        assert other == schedule and hash(other) == hash(schedule) and other.digest == schedule.digest
        assert other.to_dict() == schedule.to_dict()
    by_text = Schedule.from_spec(schedule.to_spec())
    assert (by_text.rules, by_text.late) == (schedule.rules, schedule.late)
    if schedule.num_layers is not None:
        assert len(schedule.resolve(schedule.num_layers)) == schedule.num_layers


def accepted(make: Callable[[], Schedule], folder: Path) -> bool:
    """True if a schedule was made; every refusal is one line that says something."""
    try:
        schedule = make()
    except ScheduleError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 2500
        return False
    survives(schedule, folder)
    return True


def test_spec_text(tmp_path: Path) -> None:
    seen: list[bool] = []

    @FUZZ
    @given(specs, st.integers(-1, 50))
    def holds(text: str, num_layers: int) -> None:
        seen.append(accepted(lambda: Schedule.from_spec(text), tmp_path))
        if seen[-1]:
            try:
                assert len(Schedule.from_spec(text).resolve(num_layers)) == num_layers
            except ScheduleError as error:
                assert "layer" in str(error)

    holds()
    assert 0.15 < sum(seen) / len(seen) < 0.85, "both accepted and refused"


@st.composite
def changed_files(draw: st.DrawFn) -> Any:
    """A valid file with some values replaced, taken away or added, anywhere."""
    data = copy.deepcopy(FILE)
    for _ in range(draw(st.integers(0, 3))):
        at: Any = data
        for _ in range(draw(st.integers(0, 3))):
            inner = [v for v in (at.values() if isinstance(at, dict) else at) if isinstance(v, (dict, list)) and v]
            if inner:
                at = draw(st.sampled_from(inner))
        keys = sorted(at, key=str) if isinstance(at, dict) else list(range(len(at)))
        how = draw(st.sampled_from(("replace", "remove", "add", "near")))
        if how == "add" or not keys:
            new = draw(values)
            if isinstance(at, dict):
                at[draw(texts | st.sampled_from(KEYS))] = new
            else:
                at.append(new)
        elif how == "remove":
            del at[draw(st.sampled_from(keys))]
        elif how == "replace":
            at[draw(st.sampled_from(keys))] = draw(values)
        else:
            near = ("visual", "through_visual", "ffn", ["ffn"], "0-3", [0], [5, 5], 8, 0.5, 1, {}, [], None)
            at[draw(st.sampled_from(keys))] = draw(st.sampled_from(near))
    return data


def test_tables(tmp_path: Path) -> None:
    seen: list[bool] = []

    @FUZZ
    @given(changed_files() | values)
    def holds(data: Any) -> None:
        seen.append(accepted(lambda: Schedule.from_dict(data), tmp_path))

    holds()
    assert any(seen) and not all(seen)


@FUZZ
@given(values)
def test_anything_is_coerced_or_refused(tmp_path: Path, value: Any) -> None:
    accepted(lambda: Schedule.of(value), tmp_path)
    accepted(lambda: Schedule.load(value), tmp_path)
    accepted(lambda: Schedule.preset(value), tmp_path)


@st.composite
def file_bytes(draw: st.DrawFn) -> bytes:
    """Bytes of a schedule file with a few of them changed, of a changed file, or of anything."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.binary(max_size=60))
    if kind == 1:
        depth = draw(st.sampled_from((10, 900, 5000, 100_000)))
        opening, closing = draw(st.sampled_from((("[", "]"), ('{"rules":', "}"), ('{"provenance":', "}"))))
        return (opening * depth + "1" + closing * depth * draw(st.integers(0, 1))).encode()
    if kind == 2:
        number = draw(st.sampled_from(("NaN", "Infinity", "1e999", "9" * 5000, "-0", "1.0", "01", "1e400")))
        return json.dumps(FILE).replace(draw(st.sampled_from(("0.25", "64", "192", "8"))), number, 1).encode()
    if kind == 3:
        try:
            return json.dumps(draw(changed_files())).encode(draw(st.sampled_from(("utf-8", "utf-16", "utf-8-sig"))))
        except (TypeError, ValueError):
            return b"null"
    raw = bytearray(json.dumps(FILE).encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw) - 1))
        raw[at : at + draw(st.integers(0, 3))] = draw(
            st.binary(max_size=3) | st.sampled_from((b'"', b"}", b",", b"\\u", b"9"))
        )
    return bytes(raw)


@FUZZ
@given(file_bytes())
@example(b"\xef\xbb\xbf{}")
@example(json.dumps(FILE).encode())
def test_files(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(raw)
    accepted(lambda: Schedule.load(path), tmp_path)
    accepted(lambda: Schedule.of(str(path)), tmp_path)


@pytest.mark.parametrize(
    "name", ["", ".", "folder.json", "no/such.json", "a\x00b.json", "x" * 300 + ".json", "\ud800.json"]
)
def test_paths_that_are_no_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    for path in (tmp_path / name, str(tmp_path) + "/" + name):
        with pytest.raises(ScheduleError):
            Schedule.load(path)
    with pytest.raises(OpSkipError, match="can't be written"):
        Schedule.from_spec("attend:1").save(str(tmp_path) + "/" + name)


@pytest.mark.parametrize("path", [None, 5, b"\xff", "", object()])
def test_nothing_to_write_to(path: Any) -> None:
    with pytest.raises(OpSkipError, match="can't be written"):
        Schedule.from_spec("attend:1").save(path)


OPTIONS = (
    "schedule",
    "strict",
    "dump",
    "lower",
    "share_rotary",
    "causal",
    "onednn",
    "regions",
    "mode",
    "model_type",
    "max_autotune",
    "triton.cudagraphs",
)


@FUZZ
@given(
    options=st.dictionaries(st.sampled_from(OPTIONS) | texts | st.integers(), values | specs, max_size=4) | values,
    mode=st.none() | texts | st.sampled_from(("default", "max-autotune", "reduce-overhead")) | values,
)
def test_options(options: Any, mode: Any) -> None:
    try:
        made = Settings.parse(options, mode)
    except OpSkipError as error:
        assert str(error)
    else:
        assert made.lower in ("inductor", "eager")
        assert made.schedule is None or isinstance(made.schedule, Schedule)


def command(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, list(arguments))


def answered(arguments: list[str]) -> int:
    """Exit code 0, or 2 and something on stderr to say why; never a traceback."""
    result = command(*arguments)
    assert result.exit_code in (0, 2), f"{arguments}: {result.output}"
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        own = [line for line in result.stderr.splitlines() if line.startswith("opskip: ")]
        assert len(own) == 1 or "Usage: " in result.output, result.output
    elif "--json" in arguments and "--help" not in arguments:
        json.loads(result.stdout)
    return result.exit_code


counts = st.sampled_from(
    ("0", "1", "16", "576", "-1", "1000000", "99999999999999999999", "1.5", "", "x", "\u0661\u0662", "nan")
)
words = st.text(string.printable, max_size=8) | st.sampled_from(ODD_TEXT[:10])
schedules = specs.filter(lambda text: len(text) < 200)


def flag(name: str, value: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return value.map(lambda text: [name, text])


def lines(*parts: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.one_of(*parts), max_size=4).map(lambda found: [word for part in found for word in part])


FLAGS = st.sampled_from((["--json"], ["--help"], ["--nothing"], ["--"], []))
PRESETS = st.sampled_from([*(preset.name for preset in presets()), "qwen3-vl-8b", ""])
flops_lines = st.tuples(
    flag("--preset", PRESETS) | st.just(["--config", "CONFIG"]) | st.just([]),
    lines(
        flag("--schedule", schedules),
        flag("--visual", counts),
        flag("--text", counts),
        flag("--config", words),
        flag("--plot", st.sampled_from(("x.txt", "no/such/x.png", "", ".", "\x00.png", "\ud800/x.png"))),
        flag("--preset", words),
        FLAGS,
        words.map(lambda word: [word]),
    ),
).map(lambda pair: ["flops", *pair[0], *pair[1]])


def test_command_lines(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    codes: set[int] = set()

    @settings(FUZZ, max_examples=150)
    @given(flops_lines | lines(FLAGS, words.map(lambda word: [word]), st.sampled_from((["presets"], ["flops"]))))
    def holds(arguments: list[str]) -> None:
        codes.add(answered([str(tmp_path) if word == "CONFIG" else word for word in arguments]))

    holds()
    assert codes == {0, 2}


inspect_lines = st.tuples(
    st.sampled_from(("tiny-llava", "tiny-internvl", "tiny-qwen3-vl", "CONFIG", "FILE", "tiny-", "")),
    lines(
        flag("--schedule", schedules),
        flag("--layers", st.sampled_from(("0", "1", "2", "-3", "x", ""))),
        flag("--operator", st.sampled_from(("0.ffn", "1.attention", "9.ffn", "ffn", "", "0.ffn/2", "é"))),
        flag("--html", st.sampled_from(("no/such/x.html", ".", "", "\x00.html", "\ud800"))),
        flag("--dot", st.sampled_from(("TMP/x\x00", "TMP/\ud800", "TMP/y.dot", "TMP"))),
        flag("--visual", counts),
        flag("--image", st.sampled_from(("no.png", ".", "FILE"))),
        flag("--prompt", words),
        FLAGS,
    ),
).map(lambda pair: ["inspect", pair[0], *pair[1]])


def test_command_lines_of_inspect(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "file").write_bytes(b"\x89PNG\r\n\x1a\n")
    places = {"CONFIG": str(tmp_path), "FILE": str(tmp_path / "file")}
    codes: set[int] = set()

    @settings(FUZZ, max_examples=30)
    @given(inspect_lines)
    def holds(arguments: list[str]) -> None:
        torch._dynamo.reset()
        words = [places.get(word, word).replace("TMP", str(tmp_path)) for word in arguments]
        codes.add(answered(words))

    holds()
    assert codes == {0, 2}
