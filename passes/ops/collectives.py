"""Exchanges between processes. All of them have the same rows (`opskip_compile.passes.collectives.same_rows`).

Then the kept rows of a sum over processes are the sum of the kept rows, and fewer bytes travel. Where rows are handed
from process to process (sequence parallel) each has rows of its own, and what is exchanged stays whole.
"""

from __future__ import annotations

from opskip_compile.passes.collectives import OF_ALL, SAME_ROWS, all_gather, all_reduce, reduce_scatter
from opskip_compile.passes.ops.families import by_broadcasting, plain
from opskip_compile.passes.ops.operation import Call, Dims, Operation, declined
from opskip_compile.passes.ops.table import call_of, declare, op_name, operand
from opskip_compile.passes.refusal import Refusal

HANDED = "the processes exchange rows, or elements of the batch, so that each has others"


def _gathered(call: Call, dim: int) -> Dims | Refusal:
    """Dimension 0 of the result has the processes; the same rows of each of them stand beside each other."""
    return declined(HANDED) if dim == 0 else {call.operand(): dim}


def _scattered(call: Call, dim: int) -> Dims | Refusal:
    """Of what was cut along another dimension than the rows, and joined along dimension 0: those parts are handed out.

    The operation itself does not tell: rows that were cut look like features that were.
    """
    joined = call_of(call.operand()) if op_name(call.operand()) == "cat" else None
    parts = [] if joined is None or joined["dim"] != 0 else joined.tensors("tensors")
    cuts = {operand(part) if op_name(part) == "getitem" else None for part in parts}
    cut = cuts.pop() if len(cuts) == 1 else None
    if dim == 0 or cut is None or op_name(cut) != "chunk":
        return declined(HANDED)
    whole = call_of(cut)
    return declined(HANDED) if whole is None or whole.dimension() in (0, dim) else {call.operand(): dim}


declare(
    Operation("opskip::all_reduce", ("input, reduce_op, group_name",), rows=by_broadcasting("input")),
    functions=[all_reduce],
)
declare(
    Operation("opskip::reduce_scatter", ("input, reduce_op, group_size, group_name",), rows=_scattered),
    functions=[reduce_scatter],
)
declare(Operation("opskip::all_gather", ("input, group_size, group_name",), rows=_gathered), functions=[all_gather])
declare(plain("opskip::same_rows", "visual, plan, group_name"), functions=[SAME_ROWS])
declare(plain("opskip::of_all", "input, mean, group_name"), functions=[OF_ALL])
# What a DTensor has on this process: its own memory.
declare(plain("to_local", "input, *, grad_placements=None", aliases=("input",)))
declare(plain("copy", "input, other:T, non_blocking=False"))
