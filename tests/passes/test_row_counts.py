"""Room for kept rows: as large as what the graph would have found out, with filling that changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opskip_compile.passes.graph.sizes import PROBED
from opskip_compile.passes.row_counts import MOST_SHARES, RowCounts
from opskip_compile.passes.runtime import kept_rows
from opskip_compile.passes.scores import critical_rows, kept_count, kept_share, probe_rows
from opskip_compile.schedule.left_out import ROWS, LeftOut
from opskip_compile.schedule.schedule import Schedule
from tests.helpers.leveled import leveled
from tests.passes.test_runtime import EVERY, mask

KEEPING = "silent@keep=0.3:0 attend@through_visual,keep=0.5:1"


@EVERY
@pytest.mark.parametrize("multiple", [1, 3, 64])
def test_the_rows_are_those_that_the_graph_finds(visual: Tensor, multiple: int) -> None:
    rooms = RowCounts.of(Schedule.from_spec(KEEPING), multiple)
    given = dict(zip(rooms.names, rooms.count(visual), strict=False))
    assert bool(given) == bool(visual.any()), "counted, unless there are no visual rows"
    for name, room in given.items():
        if name == PROBED:
            others = probe_rows(visual, None, None)
            found, fitting = kept_rows(others, False), kept_rows(others, False, room)
        else:
            wanted = LeftOut.parse(name)
            through = wanted.rows == "through_visual"
            scores = torch.rand(visual.shape)
            count, most = kept_count(visual, through, wanted.keep)
            assert torch.equal(kept_share(visual, through, wanted.keep), count)
            if wanted.chooses:
                found = critical_rows(visual, through, scores, count, most)
                fitting = critical_rows(visual, through, scores, count, None, room)
            else:
                found, fitting = kept_rows(visual, through), kept_rows(visual, through, room)
        n, rows = found[0].shape[1], visual.shape[1]
        size = n if name == PROBED else min(rows, -(-n // multiple) * multiple)
        assert fitting[0].shape == fitting[1].shape == (len(visual), size)
        assert torch.equal(fitting[0][:, :n], found[0])
        assert torch.equal(fitting[1][:, :n], found[1])
        assert not fitting[1][:, n:].any(), "filling is not live"
        assert all(len({*each}) == size for each in fitting[0].tolist()), "no row stands twice"


def test_too_little_room_is_an_error_and_never_a_row_less() -> None:
    visual, room = mask("..vv..."), torch.empty(4)
    with pytest.raises(RuntimeError, match="more rows are kept"):
        kept_rows(visual, False, room)
    count, _ = kept_count(visual, False, 0.5)
    with pytest.raises(RuntimeError, match="more rows are kept"):
        critical_rows(visual, False, torch.rand(visual.shape), count, None, room)


def test_what_is_counted() -> None:
    whole = tuple(map(LeftOut, ROWS))
    assert RowCounts.of(None).wanted == whole
    assert RowCounts.of(Schedule.from_spec("silent:1 attend@through_visual:0")) == RowCounts(whole)
    keeping = RowCounts.of(Schedule.from_spec(KEEPING))
    assert set(keeping.names) == {*ROWS, PROBED, "visual,keep=0.3", "through_visual,keep=0.5"}
    assert "visual,keep=0.25" in RowCounts.of(Schedule.from_spec("late@keep=0.25:0.5")).names


def test_sizes_that_are_left_to_the_graph() -> None:
    many = " ".join(f"silent@keep=0.{i + 1}:{i}" for i in range(MOST_SHARES + 1))
    for schedule in (Schedule.from_spec(many), leveled("none", "silent@keep=0.5:1")):
        assert RowCounts.of(schedule).names == (PROBED, *ROWS)
