"""Bring a decoder as vLLM writes it into the form that the passes know.

Three things are different there. Rows of all requests lie flat, ``(rows, width)``: the residual stream is written as
one element of a batch, ``(1, rows, width)``, and everything else reads it flat. Operations that write their result
into memory made before become functions (`operations`). And a cast between equal types, which vLLM's norms are full
of, goes away.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import fx

from opskip_compile._compat import operations as torch_operations
from opskip_compile._compat import served_experts, serving
from opskip_compile.integrations.vllm.operations import (
    BLOCKED_LINEAR,
    PACKED_EXPERTS,
    PACKED_LINEAR,
    PAGED_ATTENTION,
    ROUTED_AND_SHARED_EXPERTS,
    ROUTED_EXPERTS,
    SUM_OVER_RANKS,
)
from opskip_compile.passes.ops import (
    Call,
    Trait,
    argument,
    call_of,
    having,
    is_inplace,
    op_name,
    operand,
    shape,
    tensor,
)
from opskip_compile.passes.ops.operation import same_sizes
from opskip_compile.passes.ops.streams import summands
from opskip_compile.passes.runtime import NAMES_ROWS


def lift(graph: fx.Graph, apart: Collection[int] = ()) -> None:
    """Change ``graph`` in place, from a captured graph of a decoder of vLLM.

    Args:
        graph: it has the embedded rows named by `mark_visual`.
        apart: numbers of the attentions whose queries are going to be fewer than keys and values: the packed product
            that gives all three is written as two.
    """
    for node in list(graph.nodes):
        name = _name(node)
        if name == serving.ONEDNN:
            _product(node)
        elif name == serving.AMX and not node.kwargs:
            _blocked_product(node)
        elif name == serving.ATTENTION:
            _attention(node)
        elif name == serving.EXPERTS and not node.kwargs:
            out, *rest = node.args
            _instead_of_written(node, out, PACKED_EXPERTS, tuple(rest))
        elif name in (served_experts.ROUTED, served_experts.ROUTED_AND_SHARED) and not node.kwargs:
            _experts(node)
        elif name == serving.ALL_REDUCE and not node.kwargs:
            handle, x = node.args
            _instead_of_written(node, x, SUM_OVER_RANKS, (x, handle))
    for number, node in enumerate(graph.find_nodes(op="call_function", target=PAGED_ATTENTION)):
        if number in apart:
            _queries_apart(node)
    for node in list(graph.nodes):
        if op_name(node) in ("view", "reshape"):
            _write_sizes(node)
    _drop_casts(graph)
    _Lift(graph).run()


def _name(node: fx.Node) -> str:
    """Library and name of an operator; empty for everything else."""
    target = node.target
    if node.op != "call_function" or not (torch_operations.is_overload(target) or torch_operations.is_packet(target)):
        return ""
    return "::".join(torch_operations.qualified_name(target))


def _product(node: fx.Node) -> None:
    out, x, bias, handler = node.args
    assert isinstance(out, fx.Node) and isinstance(x, fx.Node)
    if len(shape(out)) == 2:
        _instead_of_written(node, out, PACKED_LINEAR, (x, handler, bias, shape(out)[1]))


def _blocked_product(node: fx.Node) -> None:
    """The memory is handed over as a view that is as flat as it is."""
    flat, x, weight, bias, is_vnni = node.args
    assert isinstance(flat, fx.Node)
    out = operand(flat) if op_name(flat) in ("reshape", "view") else flat
    if out is None or len(shape(out)) != 2 or (flat is not out and len(flat.users) > 1):
        return
    graph = node.graph
    _instead_of_written(node, out, BLOCKED_LINEAR, (x, weight, bias, is_vnni, shape(out)[1]))
    for dead in (flat, out) if flat is not out else ():
        if not dead.users:
            graph.erase_node(dead)


def _attention(node: fx.Node) -> None:
    """Only the plain call: with scales for quantized results it stays what it is."""
    query, key, value, out, layer = node.args[:5]
    name = serving.name_of_layer(layer)
    update = node.kwargs.get("kv_cache_dummy_dep")
    if len(node.args) > 5 or name is None or set(node.kwargs) - {"kv_cache_dummy_dep"}:
        return
    assert isinstance(out, fx.Node)
    writes = isinstance(update, fx.Node)
    given = (query, key, value, name, shape(out)[-1], writes, "", None, serving.scale_of(name))
    _instead_of_written(node, out, PAGED_ATTENTION, given)
    if isinstance(update, fx.Node) and not update.users:
        node.graph.erase_node(update)


def _experts(node: fx.Node) -> None:
    """Only where a row is all that they are asked: not with token ids beside it."""
    x, logits, shared, ids, layer, narrower = node.args
    name = serving.name_of_layer(layer)
    if ids is not None or name is None or not served_experts.asks_each_row_alone(name):
        return
    assert isinstance(x, fx.Node)
    routed = _name(node) == served_experts.ROUTED
    node.target = ROUTED_EXPERTS if routed else ROUTED_AND_SHARED_EXPERTS
    node.args = (x, logits, shared, name, narrower or shape(x)[-1])


def _instead_of_written(node: fx.Node, out: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    """A function's result for whoever reads ``out`` after ``node`` has written to it."""
    graph = node.graph
    with graph.inserting_before(node):
        new = graph.call_function(target, args)
    new.meta = {**node.meta, "example_value": out.meta["example_value"]}
    order = {other: i for i, other in enumerate(graph.nodes)}
    for user in list(out.users):
        if user is not node and order[user] > order[node]:
            user.replace_input_with(out, new)
    graph.erase_node(node)
    for dead in (out, *out.all_input_nodes):
        if not dead.users and dead.op != "placeholder":
            graph.erase_node(dead)


def _queries_apart(attention: fx.Node) -> None:
    """``split(linear(x, w, b), (q, k, v))`` as a product with the rows of ``w`` for q, and one with the others.

    Where two products were made for it on a CPU, there is a ``cat`` of them already.
    """
    for parts in _ancestors(attention.args[0]):  # type: ignore[arg-type]
        packed = operand(parts) if op_name(parts) == "split" else None
        if packed is not None and op_name(packed) in ("linear", "cat") and len(packed.users) == 1:
            break
    else:
        return
    sizes, call = argument(parts, "split_size"), call_of(packed)
    taken = {argument(user, "index"): user for user in parts.users if op_name(user) == "getitem"}
    if call is None or not isinstance(sizes, list | tuple) or len(taken) != len(parts.users):
        return
    graph, first = packed.graph, sizes[0]
    with graph.inserting_before(parts):
        if call.operation.name == "cat":
            queries, others = call["tensors"]
            if shape(queries)[-1] != first:
                return
        else:
            queries = _columns(call, slice(None, first), first)
            others = _columns(call, slice(first, None), sum(sizes[1:]))
        rest = graph.call_method("split", (others, list(sizes[1:])), {"dim": -1})
        rest.meta = {**parts.meta, "example_value": tuple(parts.meta["example_value"])[1:]}
        for index, user in taken.items():
            part = queries
            if index:
                part = graph.call_function(operator.getitem, (rest, index - 1))
                part.meta = dict(user.meta)
            user.replace_all_uses_with(part)
            graph.erase_node(user)
    graph.erase_node(parts)
    graph.erase_node(packed)


def _columns(call: Call, part: slice, count: int) -> fx.Node:
    """The product of ``call`` with a part of the rows of its weight."""
    graph = call.node.graph
    given = []
    for name in ("weight", "bias"):
        whole = call[name]
        if isinstance(whole, fx.Node):
            node = graph.call_function(operator.getitem, (whole, part))
            node.meta = {**whole.meta, "example_value": tensor(whole)[part]}  # type: ignore[index]
            whole = node
        given.append(whole)
    product = graph.call_function(torch.nn.functional.linear, (call.operand(), *given))
    narrow = tensor(call.node).narrow(-1, 0, count)  # type: ignore[union-attr]
    product.meta = {**call.node.meta, "example_value": torch.empty_like(narrow, memory_format=torch.contiguous_format)}
    return product


def _ancestors(node: fx.Node) -> Iterator[fx.Node]:
    """``node`` and what it is computed from, the nearest first."""
    seen, ahead = {node}, deque([node])
    while ahead:
        node = ahead.popleft()
        yield node
        for other in node.all_input_nodes:
            if other not in seen:
                seen.add(other)
                ahead.append(other)


def _write_sizes(node: fx.Node) -> None:
    """``x.view(y.size())`` with its numbers, -1 for the one that is not fixed: it would keep all of ``y`` alive."""
    given = argument(node, "size")
    sizes = [-1 if isinstance(size, torch.SymInt) else size for size in shape(node)]
    if isinstance(given, fx.Node) and op_name(given) == "size" and sizes.count(-1) <= 1:
        source = operand(node)
        node.args, node.kwargs = (source, *sizes), {}
        if not given.users:
            node.graph.erase_node(given)


def _drop_casts(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        source = operand(node) if op_name(node) == "to" else None
        if source is not None and _changes_nothing(node, tensor(source), tensor(node)):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _changes_nothing(node: fx.Node, before: torch.Tensor | None, after: torch.Tensor | None) -> bool:
    """True for a cast to the type that is there, which asks for nothing else: no copy, no memory format."""
    if before is None or after is None or before.dtype != after.dtype or node.kwargs:
        return False
    return len(node.args) == 2 and isinstance(node.args[1], torch.dtype)


class _Lift:
    """Gives every value of the residual stream a twin of shape ``(1, rows, width)``, from where its rows are named."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph, self._twins = graph, dict[fx.Node, fx.Node]()

    def run(self) -> None:
        for node in list(self._graph.nodes):
            x = operand(node)
            if op_name(node) == "squeeze" and x is not None and x.target in NAMES_ROWS:
                self._twins[node] = x
            elif x in self._twins and op_name(node) in having(Trait.CAST) and not is_inplace(node):
                self._take(node, self._cast(node, self._twins[x]))
            elif self._is_sum(node):
                self._take(node, self._sum(node))

    def _is_sum(self, node: fx.Node) -> bool:
        terms = summands(node)
        if terms is None or is_inplace(node) or not any(term in self._twins for term in terms):
            return False
        return all(same_sizes(term, node) for term in terms)

    def _take(self, node: fx.Node, twin: fx.Node) -> None:
        """Let everybody read ``node`` as a view of its twin."""
        with self._graph.inserting_after(twin):
            flat = self._graph.call_method("squeeze", (twin, 0))
        flat.meta = dict(node.meta)
        node.replace_all_uses_with(flat)
        self._graph.erase_node(node)
        self._twins[flat] = twin

    def _cast(self, node: fx.Node, twin: fx.Node) -> fx.Node:
        return self._like(node, twin, *node.args[1:], **node.kwargs)

    def _sum(self, node: fx.Node) -> fx.Node:
        first, second = summands(node)  # type: ignore[misc]
        return self._like(node, self._twin_of(first, node), self._twin_of(second, node))

    def _like(self, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
        """The operation of ``node`` on twins, in its place."""
        with self._graph.inserting_before(node):
            new = self._graph.create_node(node.op, node.target, args, kwargs, name=f"{node.name}_of_all")
        new.meta = {**node.meta, "example_value": tensor(node).unsqueeze(0)}  # type: ignore[union-attr]
        return new

    def _twin_of(self, term: fx.Node, before: fx.Node) -> fx.Node:
        """A value as one element of a batch; sums that only ``before`` reads are opened: an operator and what is added
        beside it are two summands of the stream."""
        if term in self._twins:
            return self._twins[term]
        inner, parts = term, None
        while len(inner.users) == 1:
            parts = summands(inner)
            if parts is not None or op_name(inner) not in having(Trait.CAST) or (source := operand(inner)) is None:
                break
            inner = source
        if parts is not None and not is_inplace(inner) and all(same_sizes(part, inner) for part in parts):
            wide = tensor(before)
            assert wide is not None
            twins = []
            for part in parts:
                twin = self._twin_of(part, before)
                if tensor(part).dtype != wide.dtype:  # type: ignore[union-attr]
                    with self._graph.inserting_before(before):
                        cast = self._graph.call_method("to", (twin, wide.dtype))
                    cast.meta = {**inner.meta, "example_value": twin.meta["example_value"].to(wide.dtype)}
                    twin = cast
                twins.append(twin)
            with self._graph.inserting_before(before):
                total = self._graph.call_function(torch.add, tuple(twins))
            total.meta = {**inner.meta, "example_value": tensor(term).unsqueeze(0).to(wide.dtype)}  # type: ignore[union-attr]
            return total
        with self._graph.inserting_before(before):
            new = self._graph.call_method("unsqueeze", (term, 0))
        new.meta = {**term.meta, "example_value": tensor(term).unsqueeze(0)}  # type: ignore[union-attr]
        return new
