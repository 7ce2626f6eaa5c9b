"""Targets of graph nodes that are operators of torch's dispatcher, and their schemas."""

from __future__ import annotations

from typing import Any

import torch


def is_overload(target: object) -> bool:
    """True for one overload of an operator, such as ``torch.ops.aten.add.Tensor``."""
    return isinstance(target, torch._ops.OpOverload)


def is_packet(target: object) -> bool:
    """True for an operator with all its overloads, such as ``torch.ops.aten.add``."""
    return isinstance(target, torch._ops.OpOverloadPacket)


def is_higher_order(target: object) -> bool:
    """True for an operator that takes graphs, such as ``torch.ops.higher_order.cond``."""
    return isinstance(target, torch._ops.HigherOrderOperator)


def schema_of(target: object) -> torch.FunctionSchema | None:
    """The schema of an overload, or of an operator that has one overload only; None for all else."""
    schemas = schemas_of(target)
    return schemas[0] if len(schemas) == 1 else None


def schemas_of(target: object) -> tuple[torch.FunctionSchema, ...]:
    """The schema of an overload, or those of all overloads of an operator; empty for all else."""
    if isinstance(target, torch._ops.OpOverload):
        return (target._schema,)
    if isinstance(target, torch._ops.OpOverloadPacket):
        return tuple(target._schemas.values())
    return ()


def overloads_of(packet: object) -> tuple[Any, ...]:
    """The overloads of an operator; empty for what is none."""
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return ()
    return tuple(getattr(packet, name) for name in packet.overloads())  # type: ignore[no-untyped-call]


def packet_of(target: object) -> Any:
    """The operator that an overload belongs to; the target itself if it is no overload."""
    return target.overloadpacket if isinstance(target, torch._ops.OpOverload) else target


def qualified_name(target: object) -> str | None:
    """``namespace::name`` of an overload or an operator, without the overload's own name; None for all else."""
    packet = packet_of(target)
    return packet._qualified_op_name if isinstance(packet, torch._ops.OpOverloadPacket) else None


def namespace_of(target: object) -> str | None:
    """``aten`` for torch's own operators; None for what is no operator, or one that takes graphs."""
    name = qualified_name(target)
    return None if name is None else name.partition("::")[0]
