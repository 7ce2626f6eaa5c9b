"""Compile layers that are alike once: what each of them computes becomes a call of one nested region.

Inductor takes most of a cold compile, and a decoder repeats itself. With one region for each kind of layer (full,
attend, transform, silent) that time no longer grows with the depth.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from opskip_compile._compat import REGION, invoke_region, is_subclass, keep_dynamo, memory_of
from opskip_compile.passes.analysis.operators import Match
from opskip_compile.passes.graph.origin import captured_place, origin
from opskip_compile.passes.graph.sizes import PROBED
from opskip_compile.passes.ops import is_inplace, mutated_nodes, tensor
from opskip_compile.passes.ops.state import keeps_its_place
from opskip_compile.passes.runtime import SELECTING, SHARED
from opskip_compile.passes.scores import CRITICAL_ROWS, KEPT_COUNT, KEPT_SHARE, ON_HOST, SPREAD_SCORES
from opskip_compile.schedule.left_out import ROWS

OUTSIDE = -1.0
_SERVING = (SPREAD_SCORES, KEPT_COUNT, KEPT_SHARE, ON_HOST)  # every layer, even if only one reads them
_GIVEN = ("placeholder", "get_attr")
_KEPT = (torch.where, *SELECTING)
_OF_ALL = (*ROWS, PROBED)  # the row sets that stand before the layers


@dataclass(frozen=True)
class Layers:
    """Where the layers of the captured graph are, by names of its nodes.

    Attributes:
        entry: the stream before the first layer.
        number: node -> the layer that it belongs to.
        exits: the last node of a layer -> that layer.
        examples: node -> its example value.
    """

    entry: str
    number: Mapping[str, int]
    exits: Mapping[str, int]
    examples: Mapping[str, Any]

    @classmethod
    def of(cls, captured: fx.Graph, match: Match) -> Layers:
        """Of a captured graph, before it is rewritten."""
        operators = match.everything()
        number = {op.name: op.layer for op in operators}
        last = {op.layer: captured_place(op.exit) for op in operators}
        return cls(
            captured_place(operators[0].entry),
            {node: number[name] for node, name in match.owners().items()},
            {exit_: layer for layer, exit_ in last.items()},
            {node.name: node.meta.get("example_value") for node in captured.nodes},
        )


@dataclass
class _Part:
    """The nodes of one layer, the values from elsewhere use by use and their forms, and the results by number.

    Attributes:
        kind: the same for parts that do the same with values of the same form; None if the part can't be a region.
    """

    nodes: list[fx.Node] = field(default_factory=list)
    uses: list[fx.Node] = field(default_factory=list)
    forms: list[object] = field(default_factory=list)
    gives: set[int] = field(default_factory=set)
    kind: int | None = None


def share_regions(gm: fx.GraphModule, graph: fx.Graph, layers: Layers) -> tuple[fx.Graph, int]:
    """A graph in which layers that are provably alike call the same region, and how many layers do.

    Args:
        gm: gets the regions as submodules.
        graph: a rewritten graph, with example values on the nodes that were captured. It is not changed, and comes back
            itself where no two layers are alike.
    """
    if any(map(keeps_its_place, graph.nodes)):
        return graph, 0
    level = _levels(graph, layers)
    if not _writes_come_first(graph, level):
        return graph, 0
    parts: dict[float, _Part] = {n: _Part() for n in sorted(set(level.values()) - {OUTSIDE})}
    for node in graph.nodes:
        if level[node] != OUTSIDE:
            parts[level[node]].nodes.append(node)
    for part in parts.values():
        part.nodes = _in_order_of_use(part.nodes)
    kinds: dict[object, int] = {}
    alike: dict[int, list[_Part]] = {}
    for n, part in parts.items():
        key = _describe(part, level, layers) if n.is_integer() else None
        if key is not None:
            part.kind = kinds.setdefault(key, len(kinds))
            alike.setdefault(part.kind, []).append(part)
    regions = {
        kind: region for kind, group in alike.items() if len(group) > 1 and (region := _region(group)) is not None
    }
    if not regions:
        return graph, 0
    return _write(gm, graph, level, parts.values(), regions), sum(len(alike[kind]) for kind in regions)


def _levels(graph: fx.Graph, layers: Layers) -> dict[fx.Node, float]:
    """The layer of each node, so that no node reads one of a later layer.

    What does not depend on the stream goes along with the layer that it serves, or stays outside if it serves several.
    A selection from the stream of earlier layers stands by itself before its layer, which then is like the next one,
    unless its rows are chosen in the layer: they count as made of the stream in the first one, too.
    """
    level: dict[fx.Node, float] = {}
    stream: set[fx.Node] = set()
    for node in graph.nodes:
        level[node] = OUTSIDE
        place = captured_place(node)
        if place == layers.entry:
            stream.add(node)
        elif node.target is CRITICAL_ROWS or (node.op != "output" and not stream.isdisjoint(node.all_input_nodes)):
            stream.add(node)
            levels: list[float] = [layers.number.get(place, OUTSIDE), *(level[read] for read in node.all_input_nodes)]
            for read in node.all_input_nodes:
                exit_ = captured_place(read)
                if exit_ in layers.exits and exit_ != place and read.target not in SELECTING:
                    levels.append(layers.exits[exit_] + 1)
            level[node] = float(math.ceil(max(levels)))
            if node.target in SELECTING and all(level[read] < level[node] for read in node.all_input_nodes):
                level[node] -= 0.5
    for node in reversed(graph.nodes):
        # The first scores go to the first layer as those of a layer go to the next, and so do numbers of kept rows.
        made = node.args[0].target if node.target is operator.getitem else node.target
        if node not in stream and node.op not in (*_GIVEN, "output") and made not in _SERVING:
            users = {level[user] for user in node.users}
            if len(users) == 1:
                level[node] = users.pop()
    return level


def _writes_come_first(graph: fx.Graph, level: Mapping[fx.Node, float]) -> bool:
    """True if all that is written in place is written outside of the layers and before one of them reads it."""
    mutated = mutated_nodes(graph)
    read = False
    for node in graph.nodes if mutated else ():
        if is_inplace(node) and (read or level[node] != OUTSIDE):
            return False
        read |= level[node] != OUTSIDE and not mutated.isdisjoint(node.all_input_nodes)
    return True


def _in_order_of_use(nodes: list[fx.Node]) -> list[fx.Node]:
    """The same nodes, each after what it reads and as late as the first one that reads it allows.

    Nodes that do not read one another stand in the graph as passes have put them there, in one layer this way and in
    another that way. They are functions: nothing in a layer is written in place.
    """
    inside, order = set(nodes), dict[fx.Node, None]()
    todo = [node for node in reversed(nodes) if inside.isdisjoint(node.users)]
    while todo:
        reads = [read for read in todo[-1].all_input_nodes if read in inside and read not in order]
        if reads:
            todo += reversed(reads)
        else:
            order[todo.pop()] = None
    return list(order)


def _describe(part: _Part, level: Mapping[fx.Node, float], layers: Layers) -> object:
    """Find the uses and the results of a part; a key that says all that it does, None if it can't be a region."""
    inside = {node: i for i, node in enumerate(part.nodes)}

    def code(value: Any) -> object:
        if isinstance(value, fx.Node):
            if value in inside:
                return inside[value]
            part.uses.append(value)
            part.forms.append(_form(value, layers, level[value] == OUTSIDE))
            return "use", part.forms[-1]
        if isinstance(value, tuple | list):
            return type(value).__name__, tuple(map(code, value))
        if isinstance(value, Mapping):
            return tuple((name, code(each)) for name, each in value.items())
        if isinstance(value, slice):
            return "slice", code((value.start, value.stop, value.step))
        return type(value).__name__, repr(value)

    written = tuple((node.op, node.target, code(node.args), code(node.kwargs)) for node in part.nodes)
    part.gives = {i for node, i in inside.items() if any(user not in inside for user in node.users)}
    results = [part.nodes[i] for i in part.gives]
    fits = all(_is_tensor(node) and _form(node, layers, False) is not None for node in results)
    return written if fits and None not in part.forms else None


def _form(node: fx.Node, layers: Layers, outside: bool) -> object:
    """All that code for the value depends on; None if it is not known, or if a region can't take it.

    Values that a pass made have no example. Outside of the layers such a value is like itself only.
    """
    value = node.meta.get("example_value")
    if isinstance(value, torch.SymInt):
        return "size", str(value)
    if isinstance(value, torch.Tensor):
        if is_subclass(value):
            return None
        numbers = (*value.shape, *value.stride(), value.storage_offset())
        return value.dtype, value.device, value.layout, value.dim(), tuple(map(str, numbers))
    if value is not None:
        return None
    if outside:
        return "itself", node.name
    source = origin(node)
    like = None if source is None else layers.examples.get(source.like)
    if source is None or source.dim is None or node.target not in _KEPT or not isinstance(like, torch.Tensor):
        return None
    if source.rows not in _OF_ALL:  # as many as its operator chooses, whose number no other layer knows
        return None
    shape = [str(size) for size in like.shape]
    shape[source.dim] = source.rows
    return "kept", like.dtype, like.device, tuple(shape)


def _is_tensor(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("example_value"), torch.SymInt)


def _own_memory(part: _Part, gives: Iterable[int]) -> bool:
    """True if no result shares memory with another, or with what the part reads."""
    read = {memory_of(value) for node in part.uses if (value := tensor(node)) is not None}
    results = [memory_of(value) for i in gives if (value := tensor(part.nodes[i])) is not None]
    return len(set(results)) == len(results) and read.isdisjoint(results)


@dataclass(frozen=True)
class _Region:
    """One region: its code, which use each of its inputs stands for, and which nodes are its results."""

    module: fx.GraphModule
    inputs: tuple[int, ...]
    gives: tuple[int, ...]


def _region(group: list[_Part]) -> _Region | None:
    """The region that all parts of a group can call: two uses are one input if they read the same value in each part.

    None if a result may share memory with something else.
    """
    first = group[0]
    gives = tuple(sorted(set().union(*(part.gives for part in group))))
    if not _own_memory(first, gives):
        return None
    inner = fx.Graph()
    inputs: dict[tuple[fx.Node, ...], int] = {}
    uses = list(zip(*(part.uses for part in group), strict=True))
    for i, read in enumerate(uses):
        inputs.setdefault(read, i)
    placeholders = {read: inner.placeholder(f"read_{i}") for i, read in enumerate(inputs)}
    todo = iter(uses)
    at: dict[fx.Node, fx.Node] = {}
    for node in first.nodes:
        at[node] = inner.node_copy(node, lambda read: at[read] if read in at else placeholders[next(todo)])
    inner.output(tuple(_settled(inner, first.nodes[i], at) for i in gives))
    return _Region(fx.GraphModule({}, inner), tuple(inputs.values()), gives)


def _write(
    gm: fx.GraphModule,
    graph: fx.Graph,
    level: Mapping[fx.Node, float],
    parts: Collection[_Part],
    regions: Mapping[int, _Region],
) -> fx.Graph:
    """What serves several layers first, then layer after layer."""
    new = fx.Graph(gm)
    at: dict[fx.Node, fx.Node] = {}
    names: dict[int, str] = {}
    operands = {use for part in parts if part.kind in regions for use in part.uses}
    for node in graph.nodes:
        if node.op != "output" and level[node] == OUTSIDE:
            at[node] = new.node_copy(node, at.__getitem__)
            if node in operands and _made_of_rows(node):
                at[node] = new.call_function(SHARED, (at[node],))
    for part in parts:
        region = None if part.kind is None else regions.get(part.kind)
        if part.kind is None or region is None:
            for node in part.nodes:
                at[node] = new.node_copy(node, at.__getitem__)
            at.update({node: _settled(new, node, at) for node in (part.nodes[i] for i in part.gives)})
            continue
        if part.kind not in names:
            names[part.kind] = f"{REGION}{len(names)}"
            gm.add_submodule(names[part.kind], region.module)
        name = names[part.kind]
        call = new.call_function(invoke_region, (new.get_attr(name), name, *_operands(new, part, region, at)))
        for place, i in enumerate(region.gives):
            node = part.nodes[i]
            if i in part.gives:
                at[node] = new.create_node("call_function", operator.getitem, (call, place), name=node.name)
                at[node].meta.update(node.meta)
    output = graph.output_node()
    new.output(map_arg(output.args[0], at.__getitem__))
    new.output_node().meta.update(output.meta)
    keep_dynamo(graph, new, at)
    new.lint()
    return new


def _made_of_rows(node: fx.Node) -> bool:
    """True for a tensor of kept rows. Inductor can't hand on a view of one that it has not computed yet."""
    source = origin(node)
    return source is not None and source.dim is not None


def _operands(graph: fx.Graph, part: _Part, region: _Region, at: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """What a part hands to its region.

    Tracing takes two inputs that are one tensor for one input, in every call. Another operation may return its input as
    it is, so whatever might be one tensor gets an alias: a value that is given twice, and all that is computed and has
    the form of another operand.
    """
    used = [part.uses[i] for i in region.inputs]
    forms = [part.forms[i] for i in region.inputs]
    operands = []
    for node, form in zip(used, forms, strict=True):
        alone = used.count(node) == 1 if node.op in _GIVEN else forms.count(form) == 1
        operands.append(at[node] if alone else graph.call_function(torch.ops.aten.alias.default, (at[node],)))
    return operands


def _settled(graph: fx.Graph, node: fx.Node, at: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """Kept rows are made contiguous where a layer hands them on, so that they have one form for all."""
    return graph.call_method("contiguous", (at[node],)) if node.target in _KEPT else at[node]
