"""Room for the rows that operators keep: how many they are, counted before a graph runs.

A size that a graph has to find out is asked of the device, and whoever launches its work waits for the answer; no CUDA
graph can be recorded of such code either. Whoever has the visual mask of a prompt counts instead, once for all
operators, and gives the graph tensors of these lengths (`opskip_compile.passes.runtime.name_rows`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, stack

from opskip_compile.passes.graph.sizes import PROBED
from opskip_compile.passes.runtime import fewest, left_out_rows
from opskip_compile.schedule.left_out import PROBES, ROWS, LeftOut
from opskip_compile.schedule.schedule import Schedule

MOST_SHARES = 4
"""Schedules with more keep shares leave their sizes to the graph: layers with other sizes share no code."""


@dataclass(frozen=True)
class RowCounts:
    """What is counted of a prompt.

    Attributes:
        wanted: the rows that operators leave out.
        probes: scores are asked for, too.
        multiple: numbers are rounded up to a multiple of it, at most to all rows. The surplus rows are computed and not
            used; fewer numbers occur, and each of them is a recording of its own under CUDA graphs.
    """

    wanted: tuple[LeftOut, ...]
    probes: bool = False
    multiple: int = 1

    @classmethod
    def of(cls, schedule: Schedule | None, multiple: int = 1) -> RowCounts:
        """For a schedule; None for one that is not known yet, which keeps no shares.

        Whole sets are always counted; how much a prompt keeps whose level is chosen in the graph can't be.
        """
        schedule = schedule or Schedule()
        left_out = {rule.left_out for rule in schedule.rules} | ({schedule.late.left_out} if schedule.late else set())
        shares = sorted(each for each in left_out if each.chooses)
        counted = shares if len(shares) <= MOST_SHARES else []
        probes = bool(shares or schedule.levels)
        return cls((*(LeftOut(rows) for rows in ROWS), *counted), probes, multiple)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the row sets, in the order of `count`."""
        return (*([PROBED] if self.probes else []), *map(str, self.wanted))

    def sizes(self, visual: Tensor) -> tuple[int, ...]:
        """The size of each row index for ``visual``, bool ``(batch, sequence)``; the device is asked once.

        Nothing if no row is visual.
        """
        counts = stack([visual.sum(1), left_out_rows(visual, True).sum(1)]).tolist()
        if not any(counts[0]):
            return ()
        rows, least = visual.shape[1], fewest(visual)
        asked = max(least, *(min(rows - count, PROBES) for count in counts[0]))
        found = [asked] if self.probes else []
        for each in self.wanted:
            kept = max(rows - count + each.critical(count) for count in counts[ROWS.index(each.rows)])
            found.append(min(rows, -(-max(kept, least) // self.multiple) * self.multiple))
        return tuple(found)

    def count(self, visual: Tensor) -> tuple[Tensor, ...]:
        """As `sizes`, as tensors of these lengths beside ``visual``, whose values mean nothing."""
        return tuple(visual.new_empty(size) for size in self.sizes(visual))
