"""``all`` in place of layers: one grammar for spec text, files, the environment, the API and every command."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import opskip_compile as opskip
from opskip_compile.backend.settings import Settings
from opskip_compile.cli.bench_prompts import read_schedules
from opskip_compile.errors import ScheduleError
from opskip_compile.models import tiny
from opskip_compile.schedule.presets import presets
from opskip_compile.schedule.rules import Late, Rule
from opskip_compile.schedule.schedule import Schedule
from tests.helpers.commands import call


def states(schedule: Schedule, num_layers: int) -> str:
    letters = {"full": ".", "attend": "a", "transform": "t", "silent": "s"}
    return "".join(letters[layer.state] for layer in schedule.resolve(num_layers))


@pytest.mark.parametrize(
    ("spec", "normal", "of_three"),
    [
        ("silent:all", "silent:all", "sss"),
        ("attend:all", "attend:all", "aaa"),
        ("transform@through_visual:all", "transform@through_visual:all", "ttt"),
        ("attend:all transform:1", "attend:all transform:1", "asa"),
        ("transform:1 attend:all", "attend:all transform:1", "asa"),
        ("attend:all transform:all", "silent:all", "sss"),
        ("attend:all silent:1", "attend:all transform:1", "asa"),
        ("silent:all transform:0-1", "silent:all", "sss"),
        ("attend:all late:0.34", "attend:all late:0.34", "aas"),
        ("transform:all attend@through_visual:all", "transform:all attend@through_visual:all", "sss"),
    ],
)
def test_spec_text(spec: str, normal: str, of_three: str) -> None:
    schedule = Schedule.from_spec(spec)
    assert schedule.to_spec() == normal
    assert not schedule.is_empty
    assert states(schedule, 3) == of_three
    for same in (
        Schedule.from_spec(normal),
        Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
        Schedule(schedule.rules, schedule.late),
    ):
        assert same == schedule and same.digest == schedule.digest and hash(same) == hash(schedule)
    known = Schedule(schedule.rules, schedule.late, num_layers=3)
    assert "all" not in known.to_spec() and known != schedule
    assert states(known, 3) == of_three


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("silent:ALL", "layers: expected layers such as 2,4,17-18, or all, got 'ALL'"),
        ("silent:all,3", "layers: expected layers such as 2,4,17-18, or all, got 'all'"),
        ("late:all", "fraction: expected a number"),
        (
            "silent@through_visual:all transform:1",
            "rules[1].rows: layer 1 attention is visual, another rule says",
        ),
        (
            "transform:1 silent@through_visual:all",
            "rules[0].rows: layer 1 attention is visual, another rule says",
        ),
        ("attend:all silent@through_visual:all", "every layer ffn is through_visual, another rule says visual"),
    ],
)
def test_bad_spec_text(spec: str, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.from_spec(spec)
    assert message in str(caught.value)


def test_a_conflict_with_the_last_layers_is_found_with_their_number() -> None:
    schedule = Schedule.from_spec("attend:all late@through_visual:0.5")
    with pytest.raises(ScheduleError, match=r"late.rows: layer 2 ffn is through_visual, another rule says visual"):
        schedule.resolve(4)


def test_rules_and_files(tmp_path: Path) -> None:
    rule = Rule("all", ("ffn",))
    assert Schedule((rule,)) == Schedule.from_spec("attend:all")
    assert Schedule((Rule((0,), ("attention",)), rule), Late(0.5)).to_spec() == "attend:all transform:0 late:0.5"
    Schedule((rule,)).save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["rules"][0]["layers"] == "all"
    assert Schedule.load(tmp_path / "plan.json") == Schedule((rule,))
    with pytest.raises(ScheduleError, match="layers: expected a list, got 'every'"):
        Rule("every", ("ffn",))  # type: ignore[arg-type]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("way", ["compile", "options", "environment", "file"])
def test_every_way_to_give_it(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them skip what the layers by number skip."""
    family = tiny.FAMILIES["llava"]
    inputs = family.inputs()
    numbers = opskip.compile(family.build(2), "attend:0-1", options={"lower": "eager"})
    want = numbers(**inputs).logits
    torch._dynamo.reset()
    model = family.build(2)
    given: Any = {"compile": "attend:all", "options": None, "environment": None, "file": tmp_path / "plan.json"}[way]
    options: dict[str, Any] = {"lower": "eager"}
    if way == "options":
        options["schedule"] = "attend:all"
    elif way == "environment":
        monkeypatch.setenv("OPSKIP_SCHEDULE", "attend:all")
    elif way == "file":
        Schedule.from_spec("attend:all").save(given)
    opskip.compile(model, given, options=options)
    assert torch.equal(model(**inputs).logits, want)
    assert list(opskip.last_report().skipped) == ["0.ffn", "1.ffn"]
    assert opskip.count_flops(model, visual_tokens=16, text_tokens=8, schedule="attend:all").cut > 0
    assert Settings.parse({"schedule": "attend:all"}).schedule == Schedule.from_spec("attend:all")


SPECS = ["none", "late:0.5", "late@through_visual:0.25", "silent:all", "attend:all transform:0", "silent:1-2 attend:0"]
BAD = [
    "",
    "all",
    "silent",
    "silent:",
    "silent: all",
    "silent:all:all",
    "none silent:all",
    "late:all",
    "silent:9",
    "no/p",
]


def accepted(function: Any) -> bool:
    try:
        function()
    except ScheduleError:
        return False
    return True


@pytest.mark.parametrize("spec", [*SPECS, *BAD])
def test_commands_and_api_take_the_same(spec: str, tmp_path: Path) -> None:
    layers = 4

    def of_file() -> None:
        Schedule.from_spec(spec).save(tmp_path / "plan.json")
        Schedule.load(tmp_path / "plan.json").resolve(layers)

    ways = {
        "spec": accepted(lambda: Schedule.from_spec(spec).resolve(layers)),
        "api": accepted(lambda: Schedule.of(spec).resolve(layers)),
        "file": accepted(of_file),
        "bench": accepted(lambda: read_schedules([spec], layers)),
    }
    assert set(ways.values()) == {spec in SPECS}, ways


@pytest.mark.parametrize("spec", SPECS)
def test_bench_measures_what_the_api_means(spec: str) -> None:
    assert read_schedules([spec], 4)[spec].resolve(4) == Schedule.of(spec).resolve(4)


def test_bench_thins_presets_and_names_the_layers() -> None:
    name = presets()[0].name
    assert len(read_schedules([name], 4)[name].resolve(4)) == 4
    assert read_schedules(["silent:all"], 3)["silent:all"].to_spec() == "silent:0-2"
    assert read_schedules(["late:0.5"], 4)["late:0.5"].to_spec() == "late:0.5"


def test_commands() -> None:
    flops = call("flops", "--preset", "qwen3-vl-8b/20", "--schedule", "silent:all", "--json")
    assert flops.exit_code == 0, flops.output
    assert set(json.loads(flops.stdout)["layer_states"]) == {"silent"}
    torch._dynamo.reset()
    shown = call("inspect", "tiny-llava", "--layers", "2", "--schedule", "transform:all", "--json")
    assert shown.exit_code == 0, shown.output
    skipped = [op["name"] for op in json.loads(shown.stdout)["report"]["operators"] if op["skipped"]]
    assert skipped == ["0.attention", "1.attention"]
