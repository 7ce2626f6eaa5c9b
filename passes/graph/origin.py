"""Where a node that a pass made comes from: enough to lay a rewritten graph beside the captured one.

A pass writes an `Origin` into the metadata of each node that it makes. Nothing else is kept while compiling; shapes
and differences are worked out from the origins when somebody asks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import fx

_KEY = "opskip_origin"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a new node stands for. Names are those of nodes of the captured graph.

    Attributes:
        at: the node on whose behalf it was made; it belongs to the same operator.
        like: the node that has the same shape and data type, up to ``dim``; empty if there is none.
        dim: the dimension of ``like`` that holds kept rows only, or None.
        rows: the row set of ``dim``; empty without one.
        twin: True if it does what ``like`` does, on the kept rows.
        times: how many times as many heads it has as ``like``, in dimension 1.
    """

    at: str
    like: str = ""
    dim: int | None = None
    rows: str = ""
    twin: bool = False
    times: int = 1


def set_origin(node: fx.Node, origin: Origin) -> None:
    """Note where ``node`` comes from."""
    node.meta[_KEY] = origin


def origin(node: fx.Node) -> Origin | None:
    """Where ``node`` comes from, or None for a node of the captured graph."""
    source = node.meta.get(_KEY)
    return source if isinstance(source, Origin) else None


def captured_name(node: fx.Node) -> str:
    """The name of the captured node that ``node`` is, or is made like."""
    source = origin(node)
    return node.name if source is None else source.like or source.at


def captured_place(node: fx.Node) -> str:
    """The name of the captured node on whose behalf ``node`` was made, or its own."""
    source = origin(node)
    return node.name if source is None else source.at


def source_line(node: fx.Node) -> str:
    """``file.py:line`` of the model code that made the node, without its folder; empty if unknown."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return f"{frames[-1][0].rsplit('/', 1)[-1]}:{frames[-1][1]}" if frames else ""
