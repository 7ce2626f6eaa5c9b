"""Operations that depend on more than their arguments or change more than memory: switches, random numbers, effects."""

from __future__ import annotations

from torch import fx

from opskip_compile._compat.operations import is_higher_order
from opskip_compile.passes.ops.elementwise import is_active_dropout
from opskip_compile.passes.ops.table import call_of, op_name

_SWITCHES = ("autocast", "grad_enabled")
_RANDOM = ("rand", "bernoulli", "multinomial", "rrelu")
_EFFECTS = ("print", "assert")


def _target(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).strip("_")


def is_switch(node: fx.Node) -> bool:
    """True for switches of autocast and gradients, between which an operation must stay."""
    return node.op == "call_function" and any(word in _target(node) for word in _SWITCHES)


def is_random(node: fx.Node) -> bool:
    """True for what draws random numbers, dropout that is switched on among it."""
    if op_name(node) == "dropout":
        call = call_of(node)
        return call is None or is_active_dropout(call)
    return any(word in _target(node) for word in _RANDOM)


def keeps_its_place(node: fx.Node) -> bool:
    """True for switches, random numbers, effects and operators that take graphs: their order is part of the program."""
    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module"
    if is_higher_order(node.target) or is_switch(node) or is_random(node):
        return True
    return any(word in _target(node) for word in _EFFECTS)
