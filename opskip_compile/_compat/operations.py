"""What PyTorch itself says of its operations: where they are spelled, their schemas, and how aten computes them."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

# Where an operation of one name may be spelled, and how that place is called in the table of operations.
NAMESPACES: tuple[tuple[str, Any], ...] = (
    ("torch", torch),
    ("F", F),
    ("special", torch.special),
    ("linalg", torch.linalg),
    ("nn", torch._C._nn),
    ("Tensor", torch.Tensor),
    ("operator", operator),
)


def methods() -> frozenset[str]:
    """The names of tensor methods that are generated from aten, which therefore speaks for them."""
    base = vars(torch._C.TensorBase)
    return frozenset(name for name in base if type(vars(torch.Tensor).get(name, base[name])) is type(base["add"]))


def is_own_python(function: Any) -> bool:
    """True for a function that PyTorch writes in Python, in ``torch.functional`` or ``torch.nn.functional``."""
    module = getattr(function, "__module__", None)
    return inspect.isfunction(function) and module in ("torch.functional", "torch.nn.functional")


def python_method(name: str) -> Any:
    """The method of tensors of this name if it is written in Python, else None."""
    return vars(torch.Tensor).get(name)


@dataclass(frozen=True)
class SchemaArgument:
    """One argument of a schema: its name, its default, and what becomes of its memory."""

    name: str
    has_default: bool
    default: Any
    keyword_only: bool
    is_written: bool
    is_shared: bool


@dataclass(frozen=True)
class Schema:
    """What the schema of one overload says.

    Attributes:
        arguments: in order.
        returns_shared: True if a result may share memory with an argument.
        tells_aliasing: False for an operation that is composed of others: it may return an argument as it is, and its
            schema says nothing of it, as with dropout.
    """

    arguments: tuple[SchemaArgument, ...]
    returns_shared: bool
    tells_aliasing: bool


def is_overload(target: object) -> bool:
    """True for ``torch.ops.namespace.name.overload``."""
    return isinstance(target, torch._ops.OpOverload)


def is_packet(target: object) -> bool:
    """True for ``torch.ops.namespace.name``, which stands for all overloads."""
    return isinstance(target, torch._ops.OpOverloadPacket)


def is_higher_order(target: object) -> bool:
    """True for an operator that takes graphs."""
    return isinstance(target, torch._ops.HigherOrderOperator)


def qualified_name(target: Any) -> tuple[str, str]:
    """Namespace and name of an overload or a packet."""
    whole = target._schema.name if is_overload(target) else target._qualified_op_name
    namespace, _, name = whole.partition("::")
    return namespace, name


def aten_packet(name: str) -> Any:
    """``torch.ops.aten.NAME``, or None if aten has no such operation."""
    return getattr(torch.ops.aten, name, None) if name and not name.startswith("__") else None


def packet_of_builtin(function: Any) -> Any:
    """The aten operation that a built-in function of PyTorch is generated from, or None."""
    name = getattr(function, "__name__", "")
    is_builtin = type(function) is type(torch.add) and getattr(torch, name, None) is function
    return aten_packet(name) if is_builtin else None


def overloads_of(packet: Any) -> list[Any]:
    """Every overload of a packet that can run; some that are listed belong to TorchScript alone."""
    overloads = []
    for name in packet.overloads():
        overload = getattr(packet, name)
        try:
            is_composed(overload)
        except RuntimeError:
            continue
        overloads.append(overload)
    return overloads


def is_composed(overload: Any) -> bool:
    """True for an operation that is written with others, so that a result may be an argument as it is.

    Raises:
        RuntimeError: no operator of that name can run.
    """
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(overload.has_kernel_for_dispatch_key(key))


def schema_of(overload: Any) -> Schema:
    """The schema of one overload."""
    schema = overload._schema
    arguments = tuple(
        SchemaArgument(
            a.name,
            a.has_default_value(),
            a.default_value if a.has_default_value() else None,
            a.kwarg_only,
            a.alias_info is not None and a.alias_info.is_write,
            a.alias_info is not None,
        )
        for a in schema.arguments
    )
    returns_shared = any(value.alias_info is not None for value in schema.returns)
    try:
        composed = is_composed(overload)
    except RuntimeError:  # an overload of TorchScript's, for numbers and lists
        composed = True
    return Schema(arguments, returns_shared, returns_shared or not composed)


def only_schema(target: Any) -> Schema | None:
    """The schema of an overload, or of a packet that has but one besides those that write to an ``out``; else None."""
    if is_overload(target):
        return schema_of(target)
    schemas = [schema_of(overload) for overload in overloads_of(target)]
    schemas = [schema for schema in schemas if not any(a.is_written and a.keyword_only for a in schema.arguments)]
    return schemas[0] if len(schemas) == 1 else None


def inplace_operators() -> Iterator[tuple[str, Any, bool]]:
    """Name of the plain operator and function of each in-place one: ``("add", operator.iadd, True)``.

    Last whether it writes to a tensor: ``x @= y`` does not, since tensors have no such method.
    """
    known = vars(operator)
    for name, function in known.items():
        plain = name[1:]
        if name.startswith("i") and callable(function):
            writes = hasattr(torch.Tensor, f"__{name}__")
            if plain in known and callable(known[plain]):
                yield plain, function, writes
            elif plain + "_" in known:
                yield plain + "_", function, writes
