"""Schedules with levels: how they are written, what is refused, and what they say of a layer."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import opskip_compile as opskip
from opskip_compile.errors import ScheduleError
from opskip_compile.passes.levels import levels_of
from opskip_compile.schedule.chooser import BUCKETS, Chooser, deepest, sign
from opskip_compile.schedule.left_out import LeftOut
from tests.helpers.leveled import leveled

SPECS = ("none", "silent:3 attend@keep=0.5:1", "silent:2-3 attend@keep=0.25:1")


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    schedule = leveled(*SPECS)
    schedule.save(tmp_path / "levels.json")
    again = opskip.Schedule.load(tmp_path / "levels.json")
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert again.digest == schedule.digest
    assert again.to_dict() == schedule.to_dict() == pickle.loads(pickle.dumps(schedule)).to_dict()
    assert json.loads((tmp_path / "levels.json").read_text())["version"] == 2
    assert [level.to_spec() for level in again.levels] == list(SPECS)
    assert again.chooser == schedule.chooser
    assert again.to_spec() == " | ".join(SPECS)
    assert not again.is_empty
    assert opskip.Schedule.of(str(tmp_path / "levels.json")) == schedule


def test_what_it_does_is_its_levels_and_its_chooser() -> None:
    schedule = leveled(*SPECS)
    assert schedule != leveled(*SPECS[:2])
    assert schedule.digest != leveled(*SPECS, threshold=0.5).digest
    assert schedule.digest != leveled(*SPECS, seed=1).digest
    assert schedule.digest == leveled(*SPECS).digest


def test_shares_of_all_levels() -> None:
    states = leveled(*SPECS).resolve(4)
    assert [state.attention for state in states] == [
        None,
        None,
        LeftOut("visual", 0.0, (1.0, 1.0, 0.0)),
        LeftOut("visual", 0.0, (1.0, 0.0, 0.0)),
    ]
    assert states[1].ffn == LeftOut("visual", 0.25, (1.0, 0.5, 0.25))
    assert str(states[1].ffn) == "visual,keep=1/0.5/0.25"
    assert LeftOut.parse("visual,keep=1/0.5/0.25") == states[1].ffn
    assert leveled("silent:3", "silent:2-3").resolve(4)[3].ffn == LeftOut("visual")  # the same in all
    assert not LeftOut("visual").chooses


def test_the_deepest_level_is_what_is_counted() -> None:
    sizes = opskip.Geometry(4, 64, 128, 4, 4, 16)
    counts = [
        opskip.count_flops(sizes, visual_tokens=64, text_tokens=8, schedule=schedule).skipped
        for schedule in (leveled(*SPECS), SPECS[2])
    ]
    assert counts[0] >= counts[1]  # the scores of the layers that choose are counted besides
    assert counts[0] - counts[1] < 0.02 * counts[1]


def test_a_chooser_takes_the_deepest_level_that_it_trusts() -> None:
    def row(*values: float) -> tuple[float, ...]:
        return values + (0.0,) * (2 * BUCKETS - len(values))

    chooser = Chooser((row(), row(1, 0), row(0, 1)), (-9.0, 0.0, 0.5), deepest(3, 1.0), 1.0)
    assert chooser.choose(row(0, 0)) == 2
    assert chooser.choose(row(0, 1)) == 1
    assert chooser.choose(row(2, 1)) == 0
    assert chooser.choose(row(2, 0.5)) == 2  # at the threshold
    assert Chooser((row(), row()), (5.0, 5.0), (0.0, 9.0), 1.0).choose(row()) == 0  # none is trusted: the first


@pytest.mark.parametrize(
    ("gains", "guesses", "level"),
    [
        ((0.0, 1.0, 1.5), (-99.0, -2.0, -1.0), 2),  # 0, 1 - 0.37, 1.5 - 0.61
        ((0.0, 1.0, 1.5), (-99.0, -2.0, 0.1), 1),  # 1.5 - 1.05
        ((0.0, 0.3, 0.9), (-99.0, -2.0, 0.1), 0),  # 0.3 - 0.37, 0.9 - 1.05
        ((0.0, 0.0, 0.0), (-1.0, -2.0, -2.0), 2),  # of equals the deepest
        ((0.0, 9.0, 9.0), (3.0, 3.0, 3.0), 0),  # none is trusted
        ((0.0, 1.0, 9.0), (-99.0, -2.0, 2.1), 1),  # the deepest is not
    ],
)
def test_a_level_is_taken_for_what_it_is_worth(
    gains: tuple[float, ...], guesses: tuple[float, ...], level: int
) -> None:
    """The gain less the square root of the guessed divergence, for one prompt and for many."""
    nothing = (0.0,) * (2 * BUCKETS)
    assert Chooser((nothing,) * 3, guesses, gains, 2.0).choose(nothing) == level
    rows = torch.tensor([guesses, guesses], dtype=torch.float64)
    assert levels_of(rows, torch.tensor(gains, dtype=torch.float64), 2.0).tolist() == [level] * 2


def test_signs_are_half_and_half() -> None:
    for start in range(0, 4096, 512):
        assert abs(sum(sign(column) for column in range(start, start + 512))) < 16
    assert {sign(column) for column in range(8)} == {1.0, -1.0}


def _broken(change: Any) -> dict[str, Any]:
    data = copy.deepcopy(leveled(*SPECS).to_dict())
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(version=1), "levels: needs version 2 of the format"),
        (lambda d: d.pop("chooser"), "levels: expected two at least, and a chooser"),
        (lambda d: d.pop("levels"), "levels: expected two at least, and a chooser"),
        (lambda d: d["levels"].pop(), "chooser: it is for 3 levels, there are 2"),
        (lambda d: d["levels"].append({"rules": [], "name": "x"}), r"levels\[3\].name: unknown key"),
        (lambda d: d["levels"][1].update(rules=[{"layers": "9", "skip": ["ffn"]}]), r"levels\[1\].*layer 9 is not in"),
        (lambda d: d["levels"].__setitem__(0, 3), r"levels\[0\]: expected a table"),
        (lambda d: d.update(levels=[{"rules": []}] * 17), "levels: "),
        (lambda d: d["rules"].append({"layers": "1", "skip": ["ffn"]}), "levels: a schedule has rules, or levels"),
        (lambda d: d["chooser"].update(bias=[1, 2]), "chooser.bias: expected 3 numbers, got 2"),
        (lambda d: d["chooser"]["bias"].__setitem__(1, "x"), r"chooser.bias\[1\]: expected a number, got 'x'"),
        (lambda d: d["chooser"]["bias"].__setitem__(1, True), r"chooser.bias\[1\]: expected a number"),
        (lambda d: d["chooser"]["weights"][2].pop(), r"chooser.weights\[2\]: expected 128 numbers, got 127"),
        (lambda d: d["chooser"].update(threshold=float("inf")), "chooser.threshold: expected a number"),
        (lambda d: d["chooser"].pop("threshold"), "chooser.threshold: missing"),
        (lambda d: d["chooser"].pop("gains"), "chooser.gains: missing"),
        (lambda d: d["chooser"]["gains"].append(1.0), "chooser.gains: expected 3 numbers, got 4"),
        (lambda d: d["chooser"].update(more=1), "chooser.more: unknown key"),
    ],
)
def test_bad_files_are_refused_by_field(change: Any, said: str) -> None:
    with pytest.raises(ScheduleError, match=said):
        opskip.Schedule.from_dict(_broken(change))


def test_what_can_not_be_levels() -> None:
    one = leveled(*SPECS)
    with pytest.raises(ScheduleError, match=r"levels\[0\]: a level has no levels"):
        opskip.Schedule(levels=(one, one, one), chooser=one.chooser)
    with pytest.raises(ScheduleError, match="layer 3 ffn leaves out visual and through_visual rows"):
        leveled("attend:3", "attend@through_visual:3")
    with pytest.raises(ScheduleError, match="layer 3 ffn leaves out visual and through_visual rows"):
        leveled("attend:3", "attend@through_visual:3", num_layers=None).resolve(4)
    with pytest.raises(ScheduleError, match=r"levels\[0\]: made for 6 layers, which num_layers has to say"):
        opskip.Schedule(levels=(opskip.Schedule(num_layers=6),) * 3, chooser=one.chooser)
    with pytest.raises(ScheduleError, match="keep: expected one share; levels are written in files only"):
        opskip.Schedule.from_spec("attend@keep=1/0.5:3")
    with pytest.raises(ScheduleError):
        opskip.Schedule.from_spec(one.to_spec())
