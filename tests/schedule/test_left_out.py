"""Keep shares in schedules: every way to write them, and how many rows a share is."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from opskip_compile.errors import ScheduleError
from opskip_compile.schedule.left_out import LeftOut
from opskip_compile.schedule.schedule import Schedule


@pytest.mark.parametrize(
    ("spec", "normal"),
    [
        ("attend@keep=0.25:3,5", "attend@keep=0.25:3,5"),
        ("attend@visual,keep=0.250:3", "attend@keep=0.25:3"),
        ("silent@keep=.5,through_visual:1", "silent@through_visual,keep=0.5:1"),
        ("transform@keep=0.5:1 attend@keep=0.5:1", "silent@keep=0.5:1"),
        ("transform@keep=0.5:1 attend:1", "transform@keep=0.5:1 attend:1"),
        ("silent@keep=0:1", "silent:1"),
        ("silent@keep=1:1 attend:2", "attend:2"),
        ("silent@keep=0.5:all", "silent@keep=0.5:all"),
        ("silent@keep=1:all", "none"),
        ("late@keep=0.1:0.5", "late@keep=0.1:0.5"),
        ("late@keep=1:0.5", "none"),
        ("silent@keep=0.000001:0", "silent@keep=1e-06:0"),
    ],
)
def test_keep_shares_survive_every_way_to_write_them(spec: str, normal: str, tmp_path: Path) -> None:
    schedule = Schedule.from_spec(spec)
    assert schedule.to_spec() == normal
    for again in (
        Schedule.from_spec(normal),
        Schedule.from_dict(schedule.to_dict()),
        pickle.loads(pickle.dumps(schedule)),
    ):
        assert again == schedule
        assert again.digest == schedule.digest
    schedule.save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == schedule
    # A file without shares is one that earlier releases read.
    assert schedule.to_dict()["version"] == (2 if "keep" in normal else 1)


def test_a_share_of_some_rows_is_exact() -> None:
    """``ceil(keep * rows)`` of the decimal as it is written, not of the float beside it."""
    counts = {0.1: (1, 1, 2, 3), 0.25: (1, 3, 5, 8), 0.5: (1, 5, 10, 15), 0.7: (1, 7, 14, 21), 1e-6: (1, 1, 1, 1)}
    for keep, kept in counts.items():
        assert tuple(LeftOut(keep=keep).critical(rows) for rows in (1, 10, 20, 30)) == kept
    assert LeftOut(keep=0.29).critical(100) == 29


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("silent@visual,through_visual:1", "rows: expected one of visual, through_visual, and keep=SHARE"),
        ("silent@keep:1", "rows: expected one of visual, through_visual, and keep=SHARE, got 'keep'"),
        ("silent@keep=0.5,:1", "rows: expected one of"),
        ("silent@keep=:1", "keep: expected a number from 0 to 1, got ''"),
        ("silent@keep=nan:1", "keep: expected a number from 0 to 1, got 'nan'"),
        ("silent@keep=1.5:1", "keep: expected a number from 0 to 1, got 1.5"),
        ("silent@keep=-0.5:1", "keep: expected a number from 0 to 1, got '-0.5'"),
        ("silent@keep=0.5,keep=0.5:1", "rows: expected one of"),
        ("silent@share=0.5:1", "rows: expected one of"),
        ("silent@keep=0.1234567:1", "keep: at most 6 decimals, got 0.1234567"),
    ],
)
def test_a_bad_share_is_refused_and_named(spec: str, message: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.from_spec(spec)
    assert message in str(caught.value)
