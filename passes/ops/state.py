"""Operations that depend on more than their arguments or change more than memory: switches, random numbers, effects."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import fx

from opskip_compile._compat.operations import is_higher_order
from opskip_compile.passes.ops.elementwise import is_active_dropout
from opskip_compile.passes.ops.table import call_of, op_name

_SWITCHES = ("autocast", "grad_enabled")
_RANDOM = ("rand", "bernoulli", "multinomial", "rrelu")
_EFFECTS = ("print", "assert")


@lru_cache(4096)
def _target(target: Any) -> str:
    return str(getattr(target, "__name__", target)).strip("_")


def is_switch(node: fx.Node) -> bool:
    """True for switches of autocast and gradients, between which an operation must stay."""
    return node.op == "call_function" and any(word in _target(node.target) for word in _SWITCHES)


def is_random(node: fx.Node) -> bool:
    """True for what draws random numbers, dropout that is switched on among it."""
    if op_name(node) == "dropout":
        call = call_of(node)
        return call is None or is_active_dropout(call)
    return any(word in _target(node.target) for word in _RANDOM)


@lru_cache(4096)
def _says_so(target: Any) -> bool:
    """True for a target whose name tells of a switch, a random number or an effect, or that takes graphs."""
    return is_higher_order(target) or any(word in _target(target) for word in (*_SWITCHES, *_RANDOM, *_EFFECTS))


def keeps_its_place(node: fx.Node) -> bool:
    """True for switches, random numbers, effects and operators that take graphs: their order is part of the program."""
    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module"
    return _says_so(node.target) or is_random(node)
