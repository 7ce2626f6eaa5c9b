"""Selection pushdown: move every row selection towards the inputs, so that operations run on kept rows only.

``select(op(x))`` becomes ``op(select(x))`` while a rule proves that ``op`` works row by row and nobody else needs
``op(x)`` in full. One walk from the outputs to the inputs is enough: when a node is reached, all its readers have
been decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from opskip_compile._compat import same_size
from opskip_compile.passes.graph.origin import Origin, captured_name, captured_place, set_origin
from opskip_compile.passes.ops import RULES, Decline, Rule, known_operations
from opskip_compile.passes.ops.nodes import mutated_nodes, op_name, tensor
from opskip_compile.passes.ops.registry import name_of
from opskip_compile.passes.rewrite.insert import RowSet, copy_origin
from opskip_compile.passes.rewrite.token_rebuild import build_flat, erase_flat, unsafe_to_build
from opskip_compile.passes.rewrite.token_regions import FlatRegion, Stopped, prove_flat
from opskip_compile.passes.runtime import scatter_rows, select_rows
from opskip_compile.report.record import source_line


@dataclass(frozen=True)
class Stop:
    """A selection that stopped early: at which node, of which operation, in which operator, and why."""

    node: str
    operation: str
    source: str
    reason: str
    operator: str = ""


def is_selection(node: fx.Node) -> bool:
    """True for a row selection that these passes inserted."""
    return node.op == "call_function" and node.target is select_rows


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
        self.mutated = mutated_nodes(graph, known_operations())
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.regions = any(_opens_region(node) for node in graph.nodes)
        # With a batch of one element, the batch dimension needs no proof.
        self.one_element = same_size(stream.shape[0], 1)
        self.stops: list[Stop] = []
        self.pushed = 0

    def run(self) -> list[Stop]:
        """Push every selection as far as it goes; returns where some stopped early."""
        for node in reversed(list(self.graph.nodes)):
            selections = self._merged([u for u in node.users if is_selection(u) and u.args[0] is node], node)
            if selections and len(selections) == len(node.users) and not is_source(node):
                self._push_all(node, selections)
        return self.stops

    def _push_all(self, node: fx.Node, selections: list[fx.Node]) -> None:
        asked = []
        for selection in selections:
            answer = self._ask(node, int(selection.args[2]), self.sets[selection.args[1]])  # type: ignore[arg-type,index]
            if isinstance(answer, Decline):
                self._push_region(node, selections, answer)
                return
            asked.append((selection, answer))
        for selection, (rule, dims) in asked:
            rows = self.sets[selection.args[1]]  # type: ignore[index]
            selection.replace_all_uses_with(self._build(node, int(selection.args[2]), rows, rule, dims))  # type: ignore[arg-type]
            self.graph.erase_node(selection)
            self.pushed += 1
        self._erase(node)

    def _push_region(self, node: fx.Node, selections: list[fx.Node], declined: Decline) -> None:
        """Where no rule moves the selection above ``node``: a region of flattened tokens that ends there may."""
        stopped = Stopped(node, declined.reason)
        proved: list[tuple[fx.Node, int, RowSet, FlatRegion]] = []
        for selection in selections:
            dim: Any = selection.args[2]
            rows = self.sets[selection.args[1]]  # type: ignore[index]
            found = prove_flat(node, dim, self.stream) if node not in self.mutated else None
            if isinstance(found, FlatRegion):
                found = unsafe_to_build(found, rows.n, self.order, self.mutated, self.regions) or found
            if not isinstance(found, FlatRegion):
                at = found or stopped
                owner = self.owners.get(captured_place(at.node), "")
                self.stops.append(Stop(at.node.name, name_of(at.node), source_line(at.node), at.reason, owner))
                return
            proved.append((selection, dim, rows, found))
        for selection, dim, rows, region in proved:
            selection.replace_all_uses_with(build_flat(self.graph, region, node, dim, rows, self.order))
            self.graph.erase_node(selection)
            self.pushed += len(region.orders)
        erase_flat(self.graph, [region for *_, region in proved], self.order)

    def _ask(self, node: fx.Node, dim: int, rows: RowSet) -> tuple[Rule, dict[fx.Node, int]] | Decline:
        """The rule and the operand dimensions that carry the rows, or why not."""
        if node in self.mutated:
            return Decline("it is mutated in place, or may share memory with something that is")
        rule = RULES.get(name_of(node))
        if rule is None:
            return Decline(f"no rule for {node.target if _is_custom(node) else name_of(node)}")
        dims = rule.ask(node, dim)
        if isinstance(dims, Decline):
            return dims
        late = self.order[node] < self.order[rows.n]
        if late and self.regions:
            return Decline("it runs before the rows are known, in a graph with autocast or gradient regions")
        for operand in node.all_input_nodes if late else ():
            if operand in self.mutated:
                return Decline(f"operand {operand.name} is mutated before the rows are known")
        for operand, own in dims.items():
            if tensor(operand) is None:  # a tuple of parts: the operation that made it has to agree too
                inner = self._ask(operand, own, rows)
                if isinstance(inner, Decline):
                    return inner
        if not self.one_element:
            by_element = rule.ask(node, 0)
            if isinstance(by_element, Decline):
                return Decline(f"elements of the batch: {by_element.reason}")
            for operand in dims:
                value = tensor(operand)
                alone = value is not None and operand not in by_element and same_size(value.shape[0], 1)
                if by_element.get(operand) != 0 and not (alone and value.dim() == _rank(node)):  # type: ignore[union-attr]
                    return Decline(f"operand {operand.name} has no batch dimension in front")
        return rule, dict(dims)

    def _build(self, node: fx.Node, dim: int, rows: RowSet, rule: Rule, dims: Mapping[fx.Node, int]) -> fx.Node:
        """``op(select(x))`` right where ``op(x)`` stands, or where the rows are known if that is later."""
        at = node if self.order[node] > self.order[rows.n] else rows.n
        made: list[fx.Node] = []
        with self.graph.inserting_before(at.next):
            selected: dict[fx.Node, fx.Node] = {}
            for operand, own in dims.items():
                if tensor(operand) is None:
                    inner = self._ask(operand, own, rows)
                    assert not isinstance(inner, Decline)
                    selected[operand] = self._build(operand, own, rows, *inner)
                    continue
                selected[operand] = self.graph.create_node(
                    "call_function", select_rows, (operand, rows.rows, own), name=f"{operand.name}_rows"
                )
                set_origin(selected[operand], Origin(captured_place(node), captured_name(operand), own, rows.name))
                made.append(selected[operand])
            args: tuple[Any, ...] = node.args
            kwargs: dict[str, Any] = dict(node.kwargs)
            if rule.resize is not None:
                args, kwargs = rule.resize(node, dim, rows.n)
            # Selected rows are contiguous in the order of the operand, so a view may have to copy.
            new = self.graph.create_node(
                node.op,
                "reshape" if node.target == "view" else node.target,
                map_arg(args, lambda n: selected.get(n, n)),
                map_arg(kwargs, lambda n: selected.get(n, n)),
                name=f"{node.name}_kept",
            )
        set_origin(new, Origin(captured_place(node), captured_name(node), dim, rows.name, twin=True))
        copy_origin([*made, new], node)
        return new

    def _erase(self, node: fx.Node) -> None:
        """Erase a node, and the tuple of parts that nobody takes a part of any more, which would read all rows."""
        inputs = node.all_input_nodes
        self.graph.erase_node(node)
        for parts in inputs:
            if not parts.users and isinstance(parts.meta.get("example_value"), tuple) and name_of(parts) in RULES:
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


def is_source(node: fx.Node) -> bool:
    """A value that is not computed in this graph, or one that a scatter made: selections end here as intended."""
    return node.op in ("placeholder", "get_attr") or node.target is scatter_rows


def _rank(node: fx.Node) -> int:
    value = tensor(node)
    return value.dim() if value is not None else -1


def _opens_region(node: fx.Node) -> bool:
    """True for autocast and gradient switches, between which an operation must stay."""
    name = str(getattr(node.target, "__name__", node.target))
    return node.op == "call_function" and ("autocast" in name or "grad_enabled" in name)


def _is_custom(node: fx.Node) -> bool:
    """True for an operator of another library, which is named with its library."""
    return isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket) and op_name(node) is None
