"""A graph diff as plain data: lines of two graphs side by side, grouped by operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from opskip_compile.report.record import NodeRecord

STATUSES = ("kept", "changed", "rewired", "added", "removed")
_TITLES = {
    "inputs": "inputs and weights",
    "before": "before the layers",
    "between": "between the operators",
    "after": "after the layers",
}


@dataclass(frozen=True)
class DiffLine:
    """One line of the side-by-side view.

    Attributes:
        status: ``kept``: the same operation on the same values; ``changed``: the same operation on other shapes or
            with other arguments; ``rewired``: the same operation and shape, but it reads another node; ``added``;
            ``removed``.
        before, after: the node in the captured and in the rewritten graph; one of them may be None.
    """

    status: str
    before: NodeRecord | None
    after: NodeRecord | None

    @property
    def name(self) -> str:
        """The node's name in the rewritten graph, or in the captured one if it was removed."""
        record = self.after or self.before
        assert record is not None
        return record.name


@dataclass(frozen=True)
class LineGroup:
    """The lines of one operator, or of what stands outside of the operators.

    Attributes:
        name: ``"17.ffn"``, or ``inputs``, ``before``, ``between``, ``after``.
        facts: what the report says of the operator; empty for the others.
    """

    name: str
    lines: tuple[DiffLine, ...]
    facts: Mapping[str, Any]

    @property
    def layer(self) -> int | None:
        """Zero-based layer, or None outside of the operators."""
        return int(self.name.split(".")[0]) if "." in self.name else None

    @property
    def kind(self) -> str | None:
        """``attention``, ``ffn``, or None outside of the operators."""
        return self.name.split(".")[1] if "." in self.name else None

    @property
    def title(self) -> str:
        """The name in words."""
        return _TITLES.get(self.name) or f"layer {self.layer} {self.kind}"

    @property
    def counts(self) -> dict[str, int]:
        """Lines by status, every status named."""
        number = Counter(line.status for line in self.lines)
        return {status: number[status] for status in STATUSES}


@dataclass(frozen=True)
class DiffData:
    """The difference of two graphs.

    Attributes:
        before, after: records of the captured and of the rewritten graph, in order.
        groups: all nodes, by operator, in the order of the graph.
        facts: ``summary``, ``layers``, ``misses`` and ``stops`` of the report, as plain data.
    """

    before: tuple[NodeRecord, ...]
    after: tuple[NodeRecord, ...]
    groups: tuple[LineGroup, ...]
    facts: Mapping[str, Any]

    @cached_property
    def lines(self) -> tuple[DiffLine, ...]:
        """The lines of all groups."""
        return tuple(line for group in self.groups for line in group.lines)

    @property
    def counts(self) -> dict[str, int]:
        """Nodes by status."""
        return {status: sum(group.counts[status] for group in self.groups) for status in STATUSES}

    @property
    def changes(self) -> tuple[DiffLine, ...]:
        """Every line that is not ``kept``; empty where nothing was rewritten."""
        return tuple(line for line in self.lines if line.status != "kept")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the format ``opskip-graph-diff``, version 1. The same from run to run."""
        at_before = {record.name: i for i, record in enumerate(self.before)}
        at_after = {record.name: i for i, record in enumerate(self.after)}
        groups = [
            {
                "name": group.name,
                "title": group.title,
                "layer": group.layer,
                "kind": group.kind,
                "counts": group.counts,
                "lines": [
                    [line.status, line.before and at_before[line.before.name], line.after and at_after[line.after.name]]
                    for line in group.lines
                ],
            }
            for group in self.groups
        ]
        return {
            "format": "opskip-graph-diff",
            "version": 1,
            **self.facts,
            "summary": {**self.facts["summary"], **self.counts},
            "groups": groups,
            "before": [record.to_dict() for record in self.before],
            "after": [record.to_dict() for record in self.after],
        }
