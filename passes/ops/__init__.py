"""The rules of selection pushdown: which operand dimension carries the rows of an operation's result."""

from opskip_compile.passes.ops import attention, elementwise, lookups, products, reductions, shapes
from opskip_compile.passes.ops.registry import RULES, Decline, Rule, known_operations

__all__ = [
    "RULES",
    "Decline",
    "Rule",
    "attention",
    "elementwise",
    "known_operations",
    "lookups",
    "products",
    "reductions",
    "shapes",
]
