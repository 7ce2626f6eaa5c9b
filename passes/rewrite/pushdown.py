"""Selection pushdown: move every row selection towards the inputs, so that operations run on kept rows only.

``select(op(x))`` becomes ``op(select(x))`` while a rule proves that ``op`` works row by row and nobody else needs
``op(x)`` in full. One walk from the outputs to the inputs is enough: when a node is reached, all its readers have
been decided.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from opskip_compile._compat import same_size
from opskip_compile.passes.graph.origin import Origin, captured_name, captured_place, set_origin
from opskip_compile.passes.ops import call_of, known_operations, mutated_nodes, name_of, rows_of, tensor
from opskip_compile.passes.ops.shapes import as_one_element
from opskip_compile.passes.ops.state import is_switch
from opskip_compile.passes.ops.table import resize_of
from opskip_compile.passes.refusal import Refusal, Why
from opskip_compile.passes.rewrite.selection import RowSet, copy_origin, is_selection, is_source
from opskip_compile.passes.rewrite.token_rebuild import build_flat, erase_flat
from opskip_compile.passes.rewrite.token_regions import FlatRegion, prove_flat

log = logging.getLogger(__name__)

MUTATED = Refusal(Why.MUTATED, "it is mutated in place, or may share memory with something that is")
TOO_EARLY = Refusal(Why.TOO_EARLY, "it runs before the rows are known, in a graph with autocast or gradient regions")


class Pushdown:
    """One run over one graph."""

    def __init__(
        self,
        graph: fx.Graph,
        row_sets: Mapping[str, RowSet],
        stream: torch.Tensor,
        owners: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.graph, self.owners = graph, owners
        self.stream = stream  # an example of the residual stream, (batch, sequence, width)
        self.sets = {s.rows: s for s in row_sets.values()}
        self.mutated = mutated_nodes(graph)
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.regions = any(is_switch(node) for node in graph.nodes)
        # With a batch of one element, the batch dimension needs no proof.
        self.one_element = same_size(stream.shape[0], 1)
        self.stops: list[Refusal] = []
        self.pushed = 0

    def run(self) -> list[Refusal]:
        """Push every selection as far as it goes; returns where some stopped early."""
        for node in reversed(list(self.graph.nodes)):
            selections = self._merged([u for u in node.users if is_selection(u) and u.args[0] is node], node)
            if selections and len(selections) == len(node.users) and not is_source(node):
                self._push_all(node, selections)
        return self.stops

    def _push_all(self, node: fx.Node, selections: list[fx.Node]) -> None:
        asked = []
        for selection in selections:
            answer = self.ask(node, int(selection.args[2]), self.sets[selection.args[1]])  # type: ignore[arg-type,index]
            if isinstance(answer, Refusal):
                self._push_region(node, selections, answer)
                return
            asked.append((selection, answer))
        try:
            built = [
                (selection, self._build(node, int(selection.args[2]), self.sets[selection.args[1]], dims))  # type: ignore[arg-type,index]
                for selection, dims in asked
            ]
        except Exception as error:  # what was begun is dead, and cleaned up with the rest
            self.stops.append(self._surprise(node, error))
            return
        for selection, new in built:
            selection.replace_all_uses_with(new)
            self.graph.erase_node(selection)
            self.pushed += 1
        self._erase(node)

    def _surprise(self, node: fx.Node, error: Exception) -> Refusal:
        log.debug("%s can't be written for kept rows", node.name, exc_info=True)
        text = f"it can't be written for kept rows: {type(error).__name__}: {error}"
        return self._at(Refusal(Why.SURPRISE, text), node)

    def _push_region(self, node: fx.Node, selections: list[fx.Node], refusal: Refusal) -> None:
        """Where no rule moves the selection above ``node``: a region of flattened tokens that ends there may."""
        proved: list[tuple[fx.Node, int, RowSet, FlatRegion]] = []
        for selection in selections:
            dim: Any = selection.args[2]
            rows = self.sets[selection.args[1]]  # type: ignore[index]
            region = prove_flat(node, dim, self.stream, self._at) if node not in self.mutated else None
            if isinstance(region, FlatRegion):
                region = self._unsafe_to_build(region, rows.n) or region
            if not isinstance(region, FlatRegion):
                self.stops.append(region or self._at(refusal, node))
                return
            proved.append((selection, dim, rows, region))
        try:
            built = [
                (selection, region, build_flat(self.graph, region, node, dim, rows, self.order))
                for selection, dim, rows, region in proved
            ]
        except Exception as error:
            self.stops.append(self._surprise(node, error))
            return
        for selection, region, new in built:
            selection.replace_all_uses_with(new)
            self.graph.erase_node(selection)
            self.pushed += len(region.orders)
        erase_flat(self.graph, [region for *_, region in proved], self.order)

    def _at(self, refusal: Refusal, node: fx.Node) -> Refusal:
        """A refusal with its place: the node where a selection stopped, and the operator that it belongs to."""
        return refusal.at(node, name_of(node), self.owners.get(captured_place(node), ""))

    def _unsafe_to_build(self, region: FlatRegion, known: fx.Node) -> Refusal | None:
        """Why a region can't be built again where it stands, or where the rows are known if that is later."""
        for node in sorted(region.nodes(), key=self.order.__getitem__):
            if any(value in self.mutated for value in (node, *node.all_input_nodes)):
                return self._at(MUTATED, node)
            if self.regions and self.order[node] < self.order[known]:
                return self._at(TOO_EARLY, node)
        return None

    def ask(self, node: fx.Node, dim: int, rows: RowSet) -> dict[fx.Node, int] | Refusal:
        """The operand dimensions that carry the rows of dimension ``dim`` of ``node``, or why there are none."""
        if node in self.mutated:
            return MUTATED
        dims = rows_of(node, dim)
        if isinstance(dims, Refusal):
            return dims
        late = self.order[node] < self.order[rows.n]
        if late and self.regions:
            return TOO_EARLY
        for operand in node.all_input_nodes if late else ():
            if operand in self.mutated:
                return Refusal(Why.MUTATED, f"operand {operand.name} is mutated before the rows are known")
        for operand, carried in dims.items():
            if tensor(operand) is None:  # a tuple of parts: the operation that made it has to agree too
                inner = self.ask(operand, carried, rows)
                if isinstance(inner, Refusal):
                    return inner
        if not self.one_element:
            by_element = rows_of(node, 0)
            if isinstance(by_element, Refusal):
                return replace(by_element, reason=f"elements of the batch: {by_element.reason}")
            for operand in dims:
                value = tensor(operand)
                alone = value is not None and operand not in by_element and same_size(value.shape[0], 1)
                if by_element.get(operand) != 0 and not (alone and value.dim() == _rank(node)):  # type: ignore[union-attr]
                    return Refusal(Why.BATCH, f"operand {operand.name} has no batch dimension in front")
        return dict(dims)

    def _build(self, node: fx.Node, dim: int, rows: RowSet, dims: Mapping[fx.Node, int]) -> fx.Node:
        """``op(select(x))`` right where ``op(x)`` stands, or where the rows are known if that is later."""
        at = node if self.order[node] > self.order[rows.n] else rows.n
        inserted: list[fx.Node] = []
        with self.graph.inserting_before(at.next):
            selected: dict[fx.Node, fx.Node] = {}
            for operand, carried in dims.items():
                if tensor(operand) is None:
                    inner = self.ask(operand, carried, rows)
                    assert not isinstance(inner, Refusal)  # it was asked before
                    selected[operand] = self._build(operand, carried, rows, inner)
                    continue
                selected[operand] = self.graph.create_node(
                    "call_function", rows.select, (operand, rows.rows, carried), name=f"{operand.name}_rows"
                )
                set_origin(selected[operand], Origin(captured_place(node), captured_name(operand), carried, rows.name))
                inserted.append(selected[operand])
            target, given = of_rows(node, dim, rows)
            args, kwargs = map_arg(given, lambda n: selected.get(n, n))
            new = self.graph.create_node(node.op, target, args, kwargs, name=f"{node.name}_kept")
        set_origin(new, Origin(captured_place(node), captured_name(node), dim, rows.name, twin=True))
        copy_origin([*inserted, new], node)
        return new

    def _erase(self, node: fx.Node) -> None:
        """Erase a node, and the tuple of parts that nobody takes a part of any more, which would read all rows."""
        inputs = node.all_input_nodes
        self.graph.erase_node(node)
        for parts in inputs:
            if (
                not parts.users
                and isinstance(parts.meta.get("example_value"), tuple)
                and name_of(parts) in known_operations()
            ):
                self.graph.erase_node(parts)

    def _merged(self, selections: list[fx.Node], node: fx.Node) -> list[fx.Node]:
        """One selection for each row set and dimension. A mutated value is read at its own times, so never merged."""
        if node in self.mutated:
            return selections
        kept: dict[tuple[object, ...], fx.Node] = {}
        for selection in selections:
            key = selection.args[1:]
            if key in kept:
                selection.replace_all_uses_with(kept[key])
                self.graph.erase_node(selection)
                continue
            rows = self.sets[selection.args[1]]  # type: ignore[index]
            at = node if self.order[node] > self.order[rows.n] else rows.n
            at.append(selection)
            kept[key] = selection
        return list(kept.values())


def of_rows(node: fx.Node, dim: int, rows: RowSet) -> tuple[Any, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Target and arguments of ``node`` where dimension ``dim`` of its result has kept rows only."""
    args, kwargs = node.args, dict(node.kwargs)
    resize = resize_of(node)
    call = None if resize is None else call_of(node)
    if resize is not None and call is not None:
        args, kwargs = resize(call, dim, rows.n)
        if rows.packed:
            args = as_one_element(resize, args)
    # Selected rows are contiguous in the order of the operand, so a view may have to copy.
    return "reshape" if node.target == "view" else node.target, (args, kwargs)


def _rank(node: fx.Node) -> int:
    value = tensor(node)
    return value.dim() if value is not None else -1
