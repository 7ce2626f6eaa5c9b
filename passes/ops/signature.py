"""Signatures: from positions and names to names alone, so that everything after reads an argument in one way.

PyTorch spells one operation in many ways, each with a signature of its own: ``F.leaky_relu(x, 0.1, True)`` hands
``inplace`` over by position. Python functions and schemas tell their parameters; built-in functions and methods do not,
so the table of operations declares theirs.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import fx

from opskip_compile._compat.operations import Schema

REQUIRED: Any = object()
# PyTorch takes these names for the same parameters, as NumPy spells them.
_SAME = {
    "self": "input",
    "tensor": "input",
    "x": "input",
    "a": "input",
    "A": "input",
    "x1": "input",
    "x2": "other",
    "axis": "dim",
    "keepdims": "keepdim",
    "axis0": "dim0",
    "axis1": "dim1",
}


def canonical(name: str) -> str:
    """The name of the table for a parameter that some spelling names otherwise."""
    return _SAME.get(name, name)


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        default: its value where it is not given; `REQUIRED` without one.
        tensor: takes a tensor and nothing else, which tells apart signatures of one name.
        rest: takes all that is left by position, or one sequence in its place.
        named: given by name only.
    """

    name: str
    default: Any = REQUIRED
    tensor: bool = False
    rest: bool = False
    named: bool = False


@dataclass(frozen=True)
class Signature:
    """The parameters of one spelling. ``renamed``: names of this spelling for those of the table."""

    parameters: tuple[Parameter, ...]
    renamed: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, renamed: Mapping[str, str]) -> Signature:
        """Of a declaration such as ``"input, other:T, *, alpha=1"``; ``T`` is a tensor, ``*size`` all that is left."""
        parameters: list[Parameter] = []
        named = False
        for part in text.split(", "):
            if part == "*":
                named = True
                continue
            name, _, default = part.partition("=")
            name, _, kind = name.partition(":")
            value = ast.literal_eval(default) if default else () if name.startswith("*") else REQUIRED
            parameters.append(Parameter(name.lstrip("*"), value, kind == "T", name.startswith("*"), named))
        return cls(tuple(parameters), renamed)

    @classmethod
    def of_function(cls, function: Callable[..., Any], renamed: Mapping[str, str]) -> Signature | None:
        """Of a Python function; None where it takes whatever it gets."""
        parameters = []
        for each in inspect.signature(function).parameters.values():
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                return None
            default = REQUIRED if each.default is each.empty else each.default
            name = renamed.get(each.name, _SAME.get(each.name, each.name))
            parameters.append(Parameter(name, default, named=each.kind is each.KEYWORD_ONLY))
        return cls(tuple(parameters), renamed)

    @classmethod
    def of_schema(cls, schema: Schema, renamed: Mapping[str, str]) -> Signature:
        """Of one overload."""
        return cls(
            tuple(
                Parameter(
                    renamed.get(a.name, _SAME.get(a.name, a.name)),
                    a.default if a.has_default else REQUIRED,
                    named=a.keyword_only,
                )
                for a in schema.arguments
            ),
            renamed,
        )

    @cached_property
    def places(self) -> tuple[str, ...]:
        """The names of the parameters in their order."""
        return tuple(parameter.name for parameter in self.parameters)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset((*self.places, "out"))

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Every argument by the name of its parameter, defaults included; None if they do not fit."""
        bound: dict[str, Any] = {}
        at, count = 0, len(args)
        for parameter in self.parameters:
            if at >= count:
                break
            if parameter.named:
                return None
            if parameter.rest:
                bound[parameter.name], at = _sequence(args[at:]), count
            else:
                bound[parameter.name], at = args[at], at + 1
        if at < count:
            return None
        for name, value in kwargs.items():
            name = self.renamed.get(name, canonical(name))
            if name in bound or name not in self._known:
                return None
            bound[name] = value
        for parameter in self.parameters:
            name = parameter.name
            if name not in bound:
                if parameter.default is REQUIRED:
                    return None
                bound[name] = parameter.default
            elif parameter.tensor and not is_tensor(bound[name]):
                return None
            elif parameter.rest and isinstance(bound[name], int | tuple):
                bound[name] = [bound[name]] if isinstance(bound[name], int) else list(bound[name])
        return bound


def _sequence(values: Sequence[Any]) -> Any:
    """What was given one by one, or as one sequence or one shape."""
    if len(values) == 1:
        whole = values[0]
        if isinstance(whole, list | tuple):
            return list(whole)
        if isinstance(whole, fx.Node) and isinstance(whole.meta.get("example_value"), tuple):
            return whole
    return list(values)


def is_tensor(value: object) -> bool:
    """True for a node that yields one tensor, as far as its example tells."""
    if not isinstance(value, fx.Node):
        return False
    example = value.meta.get("example_value", value.meta.get("val", REQUIRED))
    # A node that a pass made has no example: it is one of the kept rows of a tensor.
    return example is REQUIRED or isinstance(example, torch.Tensor)


@lru_cache(4096)
def parsed(text: str, renamed: tuple[tuple[str, str], ...]) -> Signature:
    """`Signature.parse`, once for each declaration."""
    return Signature.parse(text, dict(renamed))
