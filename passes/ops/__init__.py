"""The table of operations: what every pass knows of what a node computes.

One entry an operation, whatever its spelling: `table` leads from a node to its entry and its arguments by name,
`memory` says what it writes to and shares, `families` are the kinds of rules, and the other files hold the entries.
"""

from opskip_compile.passes.ops import attention, collectives, elementwise, indexing, ours, quantised, reductions, shapes
from opskip_compile.passes.ops.memory import effects, is_inplace, mutated_nodes
from opskip_compile.passes.ops.operation import Call, Dims, Operation, Trait, shape, tensor
from opskip_compile.passes.ops.table import (
    TABLE,
    argument,
    attention_kernels,
    call_of,
    declare,
    having,
    known_operations,
    name_of,
    names,
    op_name,
    operand,
    operation_named,
    products,
    rows_of,
)

__all__ = [
    "TABLE",
    "Call",
    "Dims",
    "Operation",
    "Trait",
    "argument",
    "attention",
    "attention_kernels",
    "call_of",
    "collectives",
    "declare",
    "effects",
    "elementwise",
    "having",
    "indexing",
    "is_inplace",
    "known_operations",
    "mutated_nodes",
    "name_of",
    "names",
    "op_name",
    "operand",
    "operation_named",
    "ours",
    "products",
    "quantised",
    "reductions",
    "rows_of",
    "shape",
    "shapes",
    "tensor",
]
