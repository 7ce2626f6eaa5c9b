"""A graph as plain data: one record a node, with a line of readable Python, its shape and where it comes from."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx

from opskip_compile._compat import is_overload, is_packet
from opskip_compile.passes.graph.origin import captured_place, origin, source_line
from opskip_compile.passes.graph.sizes import Shape, Sizes, row_dim

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "truediv": "/",
    "floordiv": "//",
    "mod": "%",
    "pow": "**",
    "matmul": "@",
    "and_": "&",
    "or_": "|",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
}
_OPERATORS = {getattr(operator, name): sign for name, sign in _INFIX.items()}
_PATH = re.compile(r"_?(?:modules|parameters|buffers)_")


@dataclass(frozen=True)
class NodeRecord:
    """One node.

    Attributes:
        name: of the node; unique in its graph.
        operation: what it calls, or the kind of node.
        code: the node as one line of Python; weights under the names of their modules.
        operands: names of the nodes that it reads, in order.
        literals: its other arguments, as text.
        shape, dtype: of what it yields; None if that is no tensor. A size that is not known is its symbol.
        row_dim: the dimension that holds kept rows only, or None.
        source: ``file.py:line`` of the model code.
        place: name of the captured node that it is, or on whose behalf it was made.
        twin_of: name of the captured node whose operation it does on the kept rows; empty if there is none.
    """

    name: str
    operation: str
    code: str
    operands: tuple[str, ...]
    literals: str
    shape: Shape | None
    dtype: str | None
    row_dim: int | None
    source: str
    place: str
    twin_of: str

    def to_dict(self) -> dict[str, Any]:
        """What a reader of the diff needs of it."""
        whole = asdict(self)
        return {name: whole[name] for name in ("name", "code", "shape", "dtype", "source", "row_dim")}


def record_graph(graph: fx.Graph, sizes: Sizes) -> tuple[NodeRecord, ...]:
    """A record of every node of ``graph``, in order."""
    labels = {node: _label(node) for node in graph.nodes}
    return tuple(_record(node, labels, sizes) for node in graph.nodes)


def _record(node: fx.Node, labels: Mapping[fx.Node, str], sizes: Sizes) -> NodeRecord:
    value, found = sizes.value(node), origin(node)
    operation = _operation(node)
    return NodeRecord(
        name=node.name,
        operation=operation,
        code=_code(node, operation, labels),
        operands=tuple(other.name for other in _operands(node)),
        literals=repr(fx.node.map_arg((node.args, node.kwargs), lambda _: None)),
        shape=sizes.shape(node),
        dtype=None if value is None else str(value.dtype).removeprefix("torch."),
        row_dim=row_dim(node),
        source=source_line(node),
        place=captured_place(node),
        twin_of=found.like if found is not None and found.twin else "",
    )


def _operands(node: fx.Node) -> list[fx.Node]:
    """Every node among the arguments, in order; one that is read twice stands twice."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _operation(node: fx.Node) -> str:
    if node.op in ("placeholder", "output"):
        return node.op
    if node.op == "call_function":
        target = node.target
        if is_overload(target) or is_packet(target):
            return str(target)
        name = getattr(target, "__name__", str(target))
        module = getattr(target, "__module__", None) or ""
        known = module == "torch" or module.startswith(("torch.nn", "torch._C"))
        return f"{module}.{name}" if known else str(name)
    return str(node.target)


def _code(node: fx.Node, operation: str, labels: Mapping[fx.Node, str]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, fx.Node):
            return labels[value]
        if isinstance(value, tuple):
            return f"({', '.join(map(text, value))}{',' if len(value) == 1 else ''})"
        if isinstance(value, list):
            return f"[{', '.join(map(text, value))}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{key!r}: {text(item)}' for key, item in value.items())}}}"
        if isinstance(value, slice):
            parts = ["" if part is None else text(part) for part in (value.start, value.stop)]
            return ":".join(parts) + ("" if value.step is None else f":{text(value.step)}")
        return "..." if value is Ellipsis else _literal(value)

    def call(args: tuple[Any, ...]) -> str:
        return ", ".join([*map(text, args), *(f"{key}={text(item)}" for key, item in node.kwargs.items())])

    if node.op == "output":
        return f"return {text(node.args[0])}"
    if node.op == "placeholder":
        return f"{node.name} = input {labels[node]}" if labels[node] != node.name else f"{node.name} = input"
    if node.op == "get_attr":
        return f"{node.name} = self.{node.target}"
    sign = _OPERATORS.get(node.target) if node.op == "call_function" else None
    if sign is not None and len(node.args) == 2 and not node.kwargs:
        return f"{node.name} = {text(node.args[0])} {sign} {text(node.args[1])}"
    if node.target is operator.getitem:
        index = node.args[1]
        inside = ", ".join(map(text, index)) if isinstance(index, tuple) else text(index)
        return f"{node.name} = {text(node.args[0])}[{inside}]"
    if node.op == "call_method":
        return f"{node.name} = {text(node.args[0])}.{operation}({call(node.args[1:])})"
    return f"{node.name} = {operation}({call(node.args)})"


def _literal(value: Any) -> str:
    """The value as text, without the address of an object, which differs from run to run."""
    if isinstance(value, torch.dtype | torch.device | str | int | float | bool) or value is None:
        return repr(value) if isinstance(value, str | torch.device) else str(value)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _label(node: fx.Node) -> str:
    """The name to print: a weight has its module's path, anything else the node's name."""
    if node.op != "placeholder" or not _PATH.search(node.name):
        return node.name
    path = _PATH.sub(".", node.name.strip("_"))
    return path.split("self.", 1)[-1].removeprefix("l_").strip("._") or node.name
