"""The reports of this process: bounded, safe to use from several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from opskip_compile.report.report import Report


class Reports:
    """The reports of this process, newest last; bounded. Only the newest few keep the graphs for a diff."""

    def __init__(self, limit: int = 64, with_graphs: int = 8) -> None:
        self._limit, self._with_graphs = limit, with_graphs
        self._items, self._lock, self._count = list[Report](), threading.Lock(), 0

    @property
    def count(self) -> int:
        """How many graphs there were so far."""
        return self._count

    def since(self, count: int) -> list[Report]:
        """The reports of all graphs after the first ``count``."""
        return [report for report in self.all() if report.number > count]

    def add(self, report: Report) -> Report:
        """Keep a report; returns it with its number."""
        with self._lock:
            self._count += 1
            numbered = replace(report, number=self._count)
            items = [*self._items, numbered][-self._limit :]
            old = items[: -self._with_graphs]
            # A copy without graphs: whoever holds the report itself keeps them.
            items[: len(old)] = [r if r.make_diff is None else replace(r, make_diff=None) for r in old]
            self._items = items
        return numbered

    def change(self, number: int, change: Callable[[Report], Report]) -> None:
        """Put another report in the place of one, where it could not be carried out as it says."""
        with self._lock:
            self._items = [change(report) if report.number == number else report for report in self._items]

    def remove(self, number: int) -> None:
        """Forget one: its graph was captured in vain."""
        with self._lock:
            self._items = [report for report in self._items if report.number != number]

    def all(self) -> tuple[Report, ...]:
        """Every report that is kept, oldest first."""
        with self._lock:
            return tuple(self._items)

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._items = []


REPORTS = Reports()
