"""The captured graph against the rewritten one: which nodes stayed, changed, were rewired, added or removed.

Nodes are paired by where they come from, not by guessing: a node that a pass made says which captured node it stands
for (`Origin`). Pairs are rolled up by operator, so that a diff of 36 layers reads as a table and opens into code.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx

from opskip_compile.errors import OpSkipError
from opskip_compile.output.files import write_whole
from opskip_compile.report import exports, page
from opskip_compile.report.diff_data import DiffData, DiffLine, LineGroup
from opskip_compile.report.record import NodeRecord

if TYPE_CHECKING:
    from rich.console import RenderableType


class Group(LineGroup):
    """The lines of one operator, or of what stands outside of the operators. ``str()`` is the aligned code."""

    def __rich__(self) -> RenderableType:
        from opskip_compile.report import text  # which needs rich

        return text.group_view(self)

    def __str__(self) -> str:
        from opskip_compile.report import text  # which needs rich

        return text.plain(self.__rich__(), width=170)


@dataclass(frozen=True)
class GraphDiff(DiffData):
    """The difference of two graphs. ``str()`` is a table by layer and operator; see `DiffData` for what it holds."""

    groups: tuple[Group, ...]

    @classmethod
    def compare(
        cls,
        before: Sequence[NodeRecord],
        after: Sequence[NodeRecord],
        owners: Mapping[str, str],
        facts: Mapping[str, Any],
    ) -> GraphDiff:
        """Pair the nodes.

        Args:
            before, after: the two graphs.
            owners: name of a captured node -> the operator that it belongs to.
            facts: of the report; see the class.
        """
        places = _places(before, owners)
        pairs = _pairs(before, after)
        operators = {op["name"]: op for layer in facts["layers"] for op in layer["operators"]}
        members: dict[str, tuple[list[NodeRecord], list[NodeRecord]]] = {}
        for record in before:
            members.setdefault(places[record.name], ([], []))[0].append(record)
        place = "before"
        for record in after:
            place = places.get(record.place, place)
            members.setdefault(place, ([], []))[1].append(record)
        groups = [
            Group(name, tuple(_lines(*members[name], pairs)), operators.get(name, {}))
            for name in sorted(members, key=_order)
        ]
        return cls(tuple(before), tuple(after), tuple(groups), facts)

    def operator(self, name: str) -> Group:
        """The aligned code of one operator, such as ``"17.ffn"``, or of one of the other groups.

        Raises:
            OpSkipError: there is none of that name.
        """
        names = [group.name for group in self.groups]
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise OpSkipError(f"operator: there is no {name!r} in this graph{hint}")
        return self.groups[names.index(name)]

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    def to_networkx(self) -> nx.DiGraph:
        """Both graphs in one: a node has ``status``, ``operator``, code and shape before and after; so has an edge."""
        return exports.to_networkx(self)

    def to_dot(self, operator: str | None = None) -> str:
        """Graphviz text of the whole diff, or of one operator with its neighbours."""
        if operator is not None:
            self.operator(operator)
        return exports.to_dot(self, operator)

    def to_graphml(self, path: str | Path) -> None:
        """Write `to_networkx` as GraphML."""
        exports.write_graphml(self, Path(path))

    def to_html(self, path: str | Path) -> None:
        """Write one page that needs no network: layer strip, side-by-side code, search."""
        write_whole(Path(path), page.render(self.to_dict()))

    def __rich__(self) -> RenderableType:
        from opskip_compile.report import text  # which needs rich

        return text.diff_view(self)

    def __str__(self) -> str:
        from opskip_compile.report import text  # which needs rich

        return text.plain(self.__rich__(), width=120)


def _order(name: str) -> tuple[int, int, str]:
    """Inputs, what comes before, the operators by layer, what stands between them, what comes after."""
    fixed = {"inputs": 0, "before": 1, "between": 3, "after": 4}
    if name in fixed:
        return fixed[name], 0, name
    layer, kind = name.split(".")
    return 2, int(layer), kind


def _places(before: Sequence[NodeRecord], owners: Mapping[str, str]) -> dict[str, str]:
    """The group of every captured node."""
    owned = [i for i, record in enumerate(before) if record.name in owners]
    first, last = (owned[0], owned[-1]) if owned else (len(before), -1)

    def outside(i: int, record: NodeRecord) -> str:
        if record.operation == "placeholder":
            return "inputs"
        return "before" if i < first else "after" if i > last else "between"

    return {record.name: owners.get(record.name) or outside(i, record) for i, record in enumerate(before)}


def _pairs(before: Iterable[NodeRecord], after: Iterable[NodeRecord]) -> dict[str, str]:
    """Name of a rewritten node -> name of the captured node that it is, or whose operation it does now."""
    captured, there = {record.name for record in before}, {record.name for record in after}
    pairs: dict[str, str] = {}
    taken: set[str] = set()
    for record in after:
        partner = record.name if record.name in captured else record.twin_of
        gone = partner == record.name or partner not in there
        if partner in captured and gone and partner not in taken:
            pairs[record.name] = partner
            taken.add(partner)
    return pairs


def _lines(before: list[NodeRecord], after: list[NodeRecord], pairs: Mapping[str, str]) -> list[DiffLine]:
    """One group in the order of the rewritten graph; what was removed stands behind its old predecessor."""
    old = {record.name: record for record in before}
    paired = {pairs[record.name] for record in after if pairs.get(record.name) in old}
    removed: dict[str, list[DiffLine]] = {}
    anchor = ""
    for record in before:
        if record.name in paired:
            anchor = record.name
        else:
            removed.setdefault(anchor, []).append(DiffLine("removed", record, None))
    lines = removed.pop("", [])
    for record in after:
        partner = old.get(pairs.get(record.name, ""))
        lines.append(DiffLine("added" if partner is None else _status(partner, record), partner, record))
        if partner is not None:
            lines += removed.pop(partner.name, [])
    return lines


def _status(before: NodeRecord, after: NodeRecord) -> str:
    same = before.operation == after.operation and before.literals == after.literals and before.shape == after.shape
    if not same or after.row_dim is not None:
        return "changed"
    return "kept" if before.operands == after.operands else "rewired"
