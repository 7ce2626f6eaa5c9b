"""Row selections in a graph: the row sets that they take, and how to tell them from the model's own operations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from opskip_compile.passes.runtime import (
    SCATTERING,
    SELECTING,
    scatter_packed,
    scatter_rows,
    select_packed,
    select_rows,
)


@dataclass(frozen=True)
class RowSet:
    """The nodes of one row index: ``rows`` ``(batch, n)``, ``live`` ``(batch, n, 1)`` and the number ``n``.

    One that is ``packed`` lists the rows of all elements together: ``rows`` ``(2, n)`` and ``live`` ``(1, n, 1)``; what
    it selects has a batch of 1. Right where each row is computed from itself alone.
    """

    name: str
    rows: fx.Node
    live: fx.Node
    n: fx.Node
    packed: bool = False

    @property
    def select(self) -> Any:
        """The function that takes the rows out of ``(tensor, rows, dim)``."""
        return select_packed if self.packed else select_rows

    @property
    def scatter(self) -> Any:
        """The function that puts the rows back, of ``(tensor, rows, update)``."""
        return scatter_packed if self.packed else scatter_rows


def is_selection(node: fx.Node) -> bool:
    """True for a row selection that these passes inserted."""
    return node.op == "call_function" and node.target in SELECTING


def is_scatter(node: fx.Node) -> bool:
    """True for what puts kept rows back into the stream."""
    return node.op == "call_function" and node.target in SCATTERING


def is_source(node: fx.Node) -> bool:
    """A value that is not computed in this graph, or one that a scatter made: selections end here as intended."""
    return node.op in ("placeholder", "get_attr") or node.target in SCATTERING


def copy_origin(new: Iterable[fx.Node], old: fx.Node) -> None:
    """Let inserted nodes carry the source line and the module of the node they stand for."""
    for node in new:
        for key in ("nn_module_stack", "stack_trace", "source_fn_stack"):
            if key in old.meta:
                node.meta[key] = old.meta[key]
