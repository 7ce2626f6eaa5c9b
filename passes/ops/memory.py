"""Which memory a node writes to and which it may share: asked of the table, else of the schema, else assumed.

A spelling that writes in place, an argument ``inplace`` or ``out`` in whatever place it was given, and the facts of
the entry make the answer. What has no entry is asked of its schema. What has none either is a barrier: it may write to
and share the memory of everything it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from opskip_compile._compat import operations as torch_operations
from opskip_compile.passes.ops.operation import nodes_in
from opskip_compile.passes.ops.signature import Signature, canonical
from opskip_compile.passes.ops.table import call_of, spelling_of

_CALLS = ("call_function", "call_method", "call_module")


@dataclass(frozen=True)
class Effects:
    """What a node does to memory.

    Attributes:
        written: nodes whose memory it writes to.
        shared: nodes whose memory its result may share.
        assumed: True if nothing is known of the node, so that the worst is assumed of it.
    """

    written: tuple[fx.Node, ...] = ()
    shared: tuple[fx.Node, ...] = ()
    assumed: bool = False


NONE = Effects()
_SIZES = (int, float, torch.SymInt, torch.SymFloat, torch.Size)


def effects(node: fx.Node) -> Effects:
    """What running ``node`` does to the memory of its arguments."""
    if node.op not in _CALLS:
        return NONE
    spelling = spelling_of(node)
    if spelling is None:
        return _of_schema(node)
    if "out" not in node.kwargs:
        if spelling.is_plain:
            return NONE
        if spelling.is_view_of_first and node.args and isinstance(node.args[0], fx.Node):
            return Effects((), (node.args[0],))
    call = call_of(node)
    if call is None:
        return _barrier(node)
    written = [] if not (call.in_place or _is_on(call["inplace"])) else nodes_in(call["input"])
    returned = list(written)
    for name in call.operation.writes:
        parameter, condition = (name, None) if isinstance(name, str) else name
        if condition is None or call[condition] is not None:
            written += nodes_in(call[parameter])
    if call["out"] is not None:
        written += nodes_in(call["out"])
        returned += nodes_in(call["out"])
    for name in call.operation.aliases:
        returned += nodes_in(call[name])
    return Effects(tuple(written), tuple(returned))


def _is_on(switch: object) -> bool:
    return switch is not None and switch is not False


def _barrier(node: fx.Node) -> Effects:
    return Effects(tuple(node.all_input_nodes), tuple(node.all_input_nodes), assumed=True)


def _of_schema(node: fx.Node) -> Effects:
    if node.target is getattr:  # an attribute is read; it may be a view, such as `data`
        return Effects((), tuple(node.all_input_nodes))
    signature = _own_signature(node.target) if node.op == "call_function" else None
    if signature is not None:
        return _of_python(node, signature)
    schemas = [schema for schema in _schemas(node.op, node.target) if _may_run(schema, node)]
    if not schemas:
        return _barrier(node)
    if len(schemas) == 1:
        (schema,) = schemas
        # Python takes several results as one tuple ``out``, whatever their names in the schema.
        written, shared = nodes_in(node.kwargs.get("out")), nodes_in(node.kwargs.get("out"))
        named = {canonical(name): value for name, value in node.kwargs.items()}
        if len(node.args) > len(schema.arguments) or named.keys() - {*map(_name, schema.arguments), "out"}:
            return _barrier(node)  # the schema is not that of this call
        for at, argument in enumerate(schema.arguments):
            value = node.args[at] if at < len(node.args) else named.get(_name(argument))
            if argument.is_written:
                written += nodes_in(value)
            if argument.is_shared or not schema.tells_aliasing:
                shared += nodes_in(value)
        return Effects(tuple(written), tuple(shared))
    # Which overload runs is not known: what one of them does, all may do.
    writes = "out" in node.kwargs or any(a.is_written for schema in schemas for a in schema.arguments)
    shares = any(schema.returns_shared or not schema.tells_aliasing for schema in schemas)
    inputs = tuple(node.all_input_nodes)
    return Effects(inputs if writes else (), inputs if writes or shares else ())


def _name(argument: torch_operations.SchemaArgument) -> str:
    return canonical(argument.name)


# What PyTorch's own functions in Python write to, and the argument that switches it on.
_PYTHON_WRITES = {"input": "inplace", "out": "out", "weight": "max_norm"}
_RUNNING = ("running_mean", "running_var")


@lru_cache(4096)
def _own_signature(target: Any) -> Signature | None:
    """The signature of a function that PyTorch itself writes in Python with its own operations; else None."""
    return Signature.of_function(target, {}) if torch_operations.is_own_python(target) else None


def _of_python(node: fx.Node, signature: Signature) -> Effects:
    """A function of ``torch.nn.functional`` writes where its arguments say so; any result may be a view."""
    arguments = signature.bind(node.args, node.kwargs)
    if arguments is None:
        return _barrier(node)
    switched = [name for name, switch in _PYTHON_WRITES.items() if _is_on(arguments.get(switch))]
    written = [value for name in (*switched, *_RUNNING) for value in nodes_in(arguments.get(name))]
    return Effects(tuple(written), tuple(node.all_input_nodes))


def _may_run(schema: torch_operations.Schema, node: fx.Node) -> bool:
    """False for an overload that writes to an argument which is given by name only, and is not: an ``out``."""
    named = {*map(canonical, node.kwargs)}
    return all(_name(a) in named for a in schema.arguments if a.is_written and a.keyword_only)


@lru_cache(4096)
def _schemas(op: str, target: Any) -> tuple[torch_operations.Schema, ...]:
    """The schemas that speak for a target; none if nothing does."""
    if op == "call_method":
        packet = torch_operations.aten_packet(target) if target in torch_operations.methods() else None
    elif torch_operations.is_overload(target):
        return (torch_operations.schema_of(target),)
    elif torch_operations.is_packet(target):
        packet = target
    else:
        packet = torch_operations.packet_of_builtin(target)
    overloads = [] if packet is None else torch_operations.overloads_of(packet)
    return tuple(torch_operations.schema_of(overload) for overload in overloads)


def is_inplace(node: fx.Node) -> bool:
    """True if running ``node`` may change the memory of one of its arguments."""
    return bool(effects(node).written)


def mutated_nodes(graph: fx.Graph) -> frozenset[fx.Node]:
    """Nodes whose memory is written to after they are made, directly or through an alias, and those that write.

    Values that may share memory are joined; all members of a joined set that are made before something is last written
    in it count as mutated.
    """
    parent: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        root = node
        while (up := parent.get(root, root)) is not root:
            root = up
        while (up := parent.get(node, node)) is not root and up is not node:
            parent[node], node = root, up
        return root

    written: list[tuple[fx.Node, int]] = []
    for at, node in enumerate(graph.nodes):
        effect = effects(node)
        if effect is NONE:
            continue
        written += [(value, at) for value in _with_memory(effect.written)]
        for other in _with_memory((*effect.written, *effect.shared)):
            parent[find(other)] = find(node)
    last: dict[fx.Node, int] = {}
    for value, at in written:
        last[find(value)] = max(at, last.get(find(value), -1))
    return frozenset(node for i, node in enumerate(graph.nodes) if i <= last.get(find(node), -1))


def _with_memory(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Without numbers and shapes: views that read one size do not share memory for it."""
    return [node for node in nodes if not isinstance(node.meta.get("example_value"), _SIZES)]


def readers_after(node: fx.Node, order: Mapping[fx.Node, int]) -> list[fx.Node]:
    """Who reads, after ``node``, memory that it writes to in place; none if it writes nothing."""
    written = effects(node).written
    if not written:
        return []
    family = {_base(target) for target in written}
    stack = list(family)
    while stack:
        value = stack.pop()
        # What writes to the memory later has readers of its own.
        views = [
            user
            for user in value.users
            if user not in family
            and value in effects(user).shared
            and not (order[user] > order[node] and effects(user).written)
        ]
        family.update(views)
        stack += views
    return [user for member in family for user in member.users if order[user] > order[node]]


def _base(node: fx.Node) -> fx.Node:
    """What ``node`` is a view of, as far as one value says so."""
    while len(shared := {*effects(node).shared}) == 1:
        (node,) = shared
    return node
