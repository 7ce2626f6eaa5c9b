"""Families of operations as constructors: each line of the table names a family, and the family brings the rule.

A rule answers one question: if dimension ``dim`` of the result carries the rows, which dimension of which operand
carries them? It is asked for the row dimension and for the batch dimension, so it never needs to think about batches.
Whether an operation belongs to a family is checked against PyTorch's own samples (`tests/passes/ops/test_samples.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops.operation import (
    Arguments,
    Call,
    Dims,
    Operation,
    Rows,
    Trait,
    declined,
    same_sizes,
    shape,
    tensor,
)
from opskip_compile.passes.refusal import Refusal, Why

NOTHING = declined("no operand carries the rows", Why.NO_OPERAND)


def broadcast(node: fx.Node, dim: int, operands: list[fx.Node]) -> Dims | Refusal:
    """Right-aligned broadcasting: an operand of size 1 in the row dimension is left as it is."""
    dims: dict[fx.Node, int] = {}
    sizes = shape(node)
    for operand in operands:
        value = tensor(operand)
        if value is None:
            continue
        at = dim - (len(sizes) - value.dim())
        if at < 0 or same_size(value.shape[at], 1):
            continue
        if not same_size(value.shape[at], sizes[dim]):
            return declined(f"operand {operand.name} has another size in the row dimension")
        dims[operand] = at
    return dims or NOTHING


def by_broadcasting(*names: str) -> Rows:
    """Row r of the result depends on row r of the arguments of these names, or of all, that are not broadcast."""

    def rows(call: Call, dim: int) -> Dims | Refusal:
        return broadcast(call.node, dim, call.tensors(*names))

    return rows


def like_other(call: Call, dim: int) -> Dims | Refusal:
    """A copy of ``input`` with the type of ``other``, whose data is not read.

    Of an ``other`` of the same shape the rows are selected, too: so nothing goes on reading all of them.
    """
    x, other = call.operand(), call["other"]
    shaped_alike = isinstance(other, fx.Node) and same_sizes(x, other)
    return broadcast(call.node, dim, [x, other] if shaped_alike else [x])


def elementwise(
    name: str,
    *signatures: str,
    rows: Rows | None = None,
    traits: Collection[Trait] = (),
    aliases: tuple[str, ...] = (),
    synonyms: tuple[str, ...] = (),
    spelled: Mapping[str, str] | None = None,
) -> Operation:
    """Every element is computed from the elements in the same place of all operands, which broadcast.

    Args:
        rows: its rule, if it does not read the data of all its tensors.
    """
    return Operation(
        name,
        signatures or ("input",),
        synonyms,
        spelled or {},
        rows=rows or by_broadcasting(),
        aliases=aliases,
        traits=frozenset({Trait.POINTWISE, *traits}),
    )


def cast(name: str, *signatures: str) -> Operation:
    """A copy in another type or memory layout, or the value itself where it has them already."""
    return Operation(
        name,
        signatures or ("input, *, memory_format=None",),
        rows=like_other,
        resize=without_layout,
        aliases=("input",),
        traits=frozenset({Trait.CAST}),
    )


def without_layout(call: Call, dim: int, n: fx.Node) -> Arguments:
    """No wish for a memory layout: whether a tensor has one can't be told while the number of rows is not known."""
    node = call.node
    kwargs = {name: value for name, value in node.kwargs.items() if name != "memory_format"}
    last = node.args[-1] if len(node.args) > 1 else None
    return (node.args[:-1] if last is not None and last == call["memory_format"] else node.args), kwargs


def reduced(call: Call, rank: int) -> tuple[int, ...] | None:
    """The dimensions that a reduction goes over; None for all."""
    dims = call["dim"]
    if dims is None or dims == () or dims == []:
        return None
    if isinstance(dims, int) and not isinstance(dims, bool):
        return (dims % rank,)
    if isinstance(dims, list | tuple) and all(isinstance(d, int) for d in dims):
        return tuple(d % rank for d in dims)
    return None


def by_reducing(call: Call, dim: int) -> Dims | Refusal:
    """A reduction over other dimensions; without ``keepdim`` the later ones move up."""
    x = call.operand()
    rank = len(shape(x))
    over = reduced(call, rank)
    if over is None:
        return declined("it reduces over all dimensions")
    source = dim if call["keepdim"] else [d for d in range(rank) if d not in over][dim]
    return declined("it reduces over the rows") if source in over else {x: source}


REDUCTION = "input, dim=None, keepdim=False, *, dtype=None"


def reduction(name: str, *signatures: str, traits: Collection[Trait] = (), **more: Any) -> Operation:
    """One number from all entries along some dimensions."""
    return Operation(name, signatures or (REDUCTION,), rows=by_reducing, traits=frozenset(traits), **more)


def by_working_along(call: Call, dim: int) -> Dims | Refusal:
    """Works along one dimension and keeps the shape."""
    x = call.operand()
    return declined("it works along the rows") if call.dimension() == dim else {x: dim}


def along(name: str, *signatures: str, traits: Collection[Trait] = (), **more: Any) -> Operation:
    """Every entry is computed from the entries along one dimension."""
    return Operation(
        name, signatures or ("input, dim, *, dtype=None",), rows=by_working_along, traits=frozenset(traits), **more
    )


def view(name: str, *signatures: str, rows: Rows, traits: Collection[Trait] = (), **more: Any) -> Operation:
    """The same memory in another shape."""
    return Operation(name, signatures or ("input",), rows=rows, aliases=("input",), traits=frozenset(traits), **more)


def plain(name: str, *signatures: str, traits: Collection[Trait] = (), **more: Any) -> Operation:
    """An operation without a rule: what it reads, writes and shares is known, and no selection moves above it."""
    return Operation(name, signatures or ("input",), traits=frozenset(traits), **more)
