"""The one table of pushdown rules, and the helpers that rules share.

A rule answers one question about one operation: if dimension ``dim`` of the result carries the rows, which dimension
of which tensor operand carries them? The pushdown pass asks it for the row dimension and for the batch dimension, so
a rule never needs to think about batches. Operations that spell sizes in their arguments also say how those change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops.nodes import op_name, tensor
from opskip_compile.passes.ops.subclasses import mixing_subclass


@dataclass(frozen=True)
class Decline:
    """Why an operation does not work row by row here."""

    reason: str


Dims = Mapping[fx.Node, int]
Ask = Callable[[fx.Node, int], Dims | Decline]
Resize = Callable[[fx.Node, int, fx.Node], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Rule:
    """``ask(node, dim)`` gives the dimension of each operand that carries ``dim``; ``resize(node, dim, n)`` gives the
    arguments for ``n`` rows where they spell sizes."""

    ask: Ask
    resize: Resize | None = None


RULES: dict[str, Rule] = {}


def rule(*names: str, resize: Resize | None = None) -> Callable[[Ask], Ask]:
    """Register a rule for the operations of these canonical names."""

    def register(ask: Ask) -> Ask:
        for name in names:
            assert name not in RULES, f"two rules for {name}"
            RULES[name] = Rule(_of_plain_tensors(ask), resize)
        return ask

    return register


def _of_plain_tensors(ask: Ask) -> Ask:
    """A tensor subclass may compute something else under the same name, such as a product of quantised numbers."""

    @functools.wraps(ask)
    def guarded(node: fx.Node, dim: int) -> Dims | Decline:
        for other in node.all_input_nodes:
            reason = mixing_subclass(tensor(other))
            if reason:
                return Decline(f"an operand {reason}")
        return ask(node, dim)

    return guarded


def known_operations() -> frozenset[str]:
    """The canonical names that have a rule."""
    return frozenset(RULES)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def operand(node: fx.Node, position: int = 0, name: str = "input") -> fx.Node:
    """A tensor argument of the node."""
    value = argument(node, position, name)
    assert isinstance(value, fx.Node), f"{node.format_node()} has no operand {position}"
    return value


def shape(node: fx.Node) -> torch.Size:
    """The example shape of a tensor node."""
    value = tensor(node)
    assert value is not None, f"{node.name} has no example value"
    return value.shape


def broadcast(node: fx.Node, dim: int, operands: list[fx.Node], rank: int) -> Dims | Decline:
    """Right-aligned broadcasting: an operand of size 1 in the row dimension is left as it is."""
    dims: dict[fx.Node, int] = {}
    for other in operands:
        value = tensor(other)
        if value is None:
            continue
        own = dim - (rank - value.dim())
        if own < 0 or same_size(value.shape[own], 1):
            continue
        if not same_size(value.shape[own], shape(node)[dim]):
            return Decline(f"operand {other.name} has another size in the row dimension")
        dims[other] = own
    return dims or Decline("no operand carries the rows")


def all_tensors(node: fx.Node) -> list[fx.Node]:
    """Every tensor operand, once."""
    return [other for other in node.all_input_nodes if tensor(other) is not None]


def name_of(node: fx.Node) -> str:
    """The canonical name, or the target as text for a report."""
    return op_name(node) or str(getattr(node.target, "__name__", node.target))
