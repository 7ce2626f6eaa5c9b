"""The row indices of a graph: one for each row set, and one for each operator with a keep share."""

from __future__ import annotations

import operator as op
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.analysis.locate import RowSource, row_mask
from opskip_compile.passes.analysis.plan import Plan, Skip
from opskip_compile.passes.analysis.scored import Scored, last_scored
from opskip_compile.passes.collectives import OF_ALL, SAME_ROWS
from opskip_compile.passes.graph.origin import Origin, captured_name, set_origin
from opskip_compile.passes.graph.sizes import PACKED, PROBED
from opskip_compile.passes.levels import CHOOSE_LEVEL, KEPT_BY_LEVEL
from opskip_compile.passes.ops import tensor
from opskip_compile.passes.rewrite.selection import RowSet
from opskip_compile.passes.runtime import KEPT_ROWS, PACKED_ROWS, select_rows
from opskip_compile.passes.scores import (
    CRITICAL_ROWS,
    KEPT_COUNT,
    KEPT_SHARE,
    ON_HOST,
    PROBE_ROWS,
    ROW_SCORES,
    SPREAD_SCORES,
    counts_like,
)
from opskip_compile.schedule.left_out import LeftOut


class RowSets:
    """Makes the row sets of a plan.

    Rows that no score chooses are known at the start of the graph, and are one set for all operators. Critical rows are
    chosen in the layer of their operator, and so is their number made a size there: layers stay alike, whatever they
    keep.

    Args:
        graph: gets their nodes.
        plan: the skips, and the attentions that give scores.
        source: of the visual rows, and of the room for those whose number is known before the graph runs.
        groups: of processes that exchange values in operators, and compare their rows.

    Attributes:
        by_name: all of them.
    """

    def __init__(self, graph: fx.Graph, plan: Plan, source: RowSource, groups: Sequence[str] = ()) -> None:
        self.by_name: dict[str, RowSet] = {}
        self._graph, self._mask, self._stream = graph, row_mask(graph, source), tensor(source.root)
        self._rooms, self._heads = source.rooms, plan.heads
        self._last = list(graph.find_nodes(op="placeholder"))[-1] if self._mask.op == "placeholder" else self._mask
        for group in groups:
            self._mask = self._call(
                SAME_ROWS, self._mask, plan.number, group, name="visual_rows_of_all", example=torch.bool
            )
        for name in sorted({str(skip.left_out) for skip in plan.skips if not skip.left_out.chooses}):
            self.by_name[name] = self._whole(self._mask, name, name == "through_visual")
        keeping = [skip for skip in plan.skips if skip.left_out.chooses]
        self._level = self._choose(plan) if any(skip.left_out.shares for skip in keeping) else None
        self._counts = self._count_all(sorted({skip.left_out for skip in keeping}))
        self._scores: list[tuple[int, fx.Node]] = []  # from the layer on
        if keeping:
            self._score(plan, max(last_scored(skip.operator) for skip in keeping))

    def of(self, skip: Skip) -> RowSet:
        """The rows that an operator still updates."""
        left_out, operator = skip.left_out, skip.operator
        name = f"{left_out} in {operator.name}" if left_out.chooses else str(left_out)
        if name not in self.by_name:
            self.by_name[name] = self._critical(left_out, skip)
        return self.by_name[name]

    def _whole(self, mask: fx.Node, name: str, through: bool = False) -> RowSet:
        room = self._rooms.get(name)
        both = self._call(KEPT_ROWS, mask, through, *([] if room is None else [room]))
        rows = self._call(op.getitem, both, 0, name=f"rows_{name}")
        live = self._call("unsqueeze", self._call(op.getitem, both, 1), -1, name=f"live_{name}")
        return RowSet(name, rows, live, self._call("size", rows, 1, name=f"kept_{name}"))

    def _count_all(self, keeping: Sequence[LeftOut]) -> dict[LeftOut, tuple[fx.Node, fx.Node | None]]:
        """How many rows each element updates, and the sizes that follow, on the host, unless there is room for them."""
        counted = {left_out: self._count(left_out) for left_out in keeping}
        found = {left_out: most for left_out, (_, most) in counted.items() if most is not None}
        asked = self._call(ON_HOST, list(found.values())) if found else None
        for place, left_out in enumerate(found):
            most = self._call(op.getitem, asked, place, name=f"most_{left_out}")
            if self._stream is not None:
                most.meta["example_value"] = torch.empty(2, dtype=torch.int64)
            counted[left_out] = counted[left_out][0], most
        return counted

    def _count(self, left_out: LeftOut) -> tuple[fx.Node, fx.Node | None]:
        """The count of one share, and its ``most``."""
        through, most = left_out.rows == "through_visual", None
        if str(left_out) in self._rooms:
            count = self._call(KEPT_SHARE, self._mask, through, left_out.keep, name=f"count_{left_out}")
        else:
            how: list[Any] = [KEPT_BY_LEVEL, list(left_out.shares), self._level]
            how = how if left_out.shares else [KEPT_COUNT, left_out.keep]
            both = self._call(how[0], self._mask, through, *how[1:])
            count = self._call(op.getitem, both, 0, name=f"count_{left_out}")
            most = self._call(op.getitem, both, 1)
        if self._stream is not None:  # all of them have one form, and layers with them too
            like = self._stream.new_empty(self._stream.shape[:2], dtype=torch.bool)
            count.meta["example_value"], of_sizes = counts_like(like)
            if most is not None:
                most.meta["example_value"] = of_sizes
        return count, most

    def _packs(self, left_out: LeftOut) -> bool:
        """True if elements of a batch may keep different shares: then the rows of an FFN are one list for all of them,
        so that no element pays for the level of another."""
        return bool(left_out.shares) and not (self._stream is not None and same_size(self._stream.shape[0], 1))

    def _choose(self, plan: Plan) -> fx.Node:
        """The level of each element, before the first layer."""
        assert plan.levels is not None
        first, chooser = plan.attentions[0], plan.levels.chooser
        shown = (first.mask, first.columns) if _is_by_row(first) else (None, None)
        for late in plan.levels.late:
            plan.levels.first.prepend(late)
        for node in (plan.levels.hidden, *shown):
            self._last = self._last if node is None else _later(self._graph, self._last, node)
        weights = [weight for row in chooser.weights for weight in row]
        settings = (weights, list(chooser.bias), list(chooser.gains), chooser.threshold, plan.levels.digest)
        level = self._call(CHOOSE_LEVEL, plan.levels.hidden, self._mask, *shown, *settings, name="level")
        return self._call(OF_ALL, level, False, self._heads, name="level_of_all") if self._heads else level

    def _score(self, plan: Plan, last: int) -> None:
        """The scores after each attention up to that of layer ``last``."""
        self._scores.append((-1, self._call(SPREAD_SCORES, self._mask, example=torch.float32)))
        attentions = [each for each in plan.attentions if each.layer <= last]
        if not attentions:
            return
        first = attentions[0]
        known = [node for node in (first.mask, first.columns) if node is not None and _is_by_row(first)]
        for node in known:
            self._last = _later(self._graph, self._last, node)
        shown = (first.mask, first.columns) if known else (None, None)
        asked = self._whole(self._call(PROBE_ROWS, self._mask, *shown), PROBED)
        self.by_name[PROBED] = asked
        for each in attentions:
            self._last = each.call.node.prev
            self._scores.append((each.layer, self._after(each, asked, self._scores[-1][1])))

    def _after(self, each: Scored, asked: RowSet, before: fx.Node) -> fx.Node:
        call, at = each.call, each.call.node.name

        def probes(operand: fx.Node) -> fx.Node:
            like = Origin(at, captured_name(operand), each.dim, PROBED)
            return self._call(select_rows, operand, asked.rows, each.dim, name=f"{operand.name}_asked", origin=like)

        def by_heads(operand: fx.Node) -> fx.Node:
            return self._call("transpose", operand, 1, 2, origin=Origin(at)) if each.dim == 1 else operand

        mask = each.mask
        if mask is not None and _is_by_row(each):
            mask = probes(mask)
        query, key = by_heads(probes(call.operand("query"))), by_heads(call.operand("key"))
        operands = (query, key, mask, asked.rows, asked.live, before)
        rest = (each.columns, call["scale"], each.is_causal)
        name = f"scores_{each.layer}"
        return self._call(ROW_SCORES, *operands, *rest, name=name, origin=Origin(at), example=torch.float32)

    def _critical(self, left_out: LeftOut, skip: Skip) -> RowSet:
        operator, (count, most) = skip.operator, self._counts[left_out]
        scores = self._last = [node for layer, node in self._scores if layer <= last_scored(operator)][-1]
        made = Origin(operator.branch.name, rows=str(left_out))
        if self._heads:
            scores = self._call(OF_ALL, scores, True, self._heads, name=f"{scores.name}_of_all", origin=made)
        name = f"{left_out}_{operator.name}"
        packed = operator.kind == "ffn" and self._packs(left_out)

        def parts(of: Any, *args: Any) -> tuple[fx.Node, fx.Node]:
            both = self._call(of, *args, origin=made)
            rows = self._call(op.getitem, both, 0, name=f"rows_{name}", origin=made)
            return rows, self._call(op.getitem, both, 1, origin=made)

        room = self._rooms.get(str(left_out))
        args = (self._mask, left_out.rows == "through_visual", scores, count, most)
        rows, live = parts(CRITICAL_ROWS, *args, *([] if room is None else [room]))
        if packed:
            rows, live = parts(PACKED_ROWS, rows, live, most)
        live = self._call("unsqueeze", live, -1, name=f"live_{name}", origin=made)
        n = self._call("size", rows, 1, name=f"kept_{name}", origin=made)
        return RowSet(PACKED * packed + str(left_out), rows, live, n, packed)

    def _call(
        self,
        target: Any,
        *args: Any,
        name: str | None = None,
        origin: Origin | None = None,
        example: torch.dtype | None = None,
    ) -> fx.Node:
        """A call after what was made last. With ``example`` it gives ``(batch, sequence)`` of that type."""
        kind = "call_method" if isinstance(target, str) else "call_function"
        with self._graph.inserting_after(self._last):
            self._last = self._graph.create_node(kind, target, args, name=name)
        set_origin(self._last, origin or Origin(self._mask.name))
        if example is not None and self._stream is not None:
            self._last.meta["example_value"] = self._stream.new_empty(self._stream.shape[:2], dtype=example)
        return self._last


def _is_by_row(each: Scored) -> bool:
    """True if the mask of an attention says something of each row for itself."""
    value = None if each.mask is None else tensor(each.mask)
    return value is not None and not same_size(value.shape[2], 1)


def _later(graph: fx.Graph, first: fx.Node, second: fx.Node) -> fx.Node:
    order = {node: i for i, node in enumerate(graph.nodes)}
    return max(first, second, key=order.__getitem__)
