"""Matrix products: every row of the left operand gives one row of the result."""

from __future__ import annotations

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.ops.nodes import tensor
from opskip_compile.passes.ops.registry import Decline, Dims, operand, rule, shape


@rule("linear")
def linear(node: fx.Node, dim: int) -> Dims | Decline:
    """``linear(x, w, b)``: every dimension but the last is a row of x."""
    x = operand(node)
    if dim == len(shape(node)) - 1:
        return Decline("the rows are the output features")
    weight = operand(node, 1, "weight")
    if len(shape(weight)) != 2 or weight is x:
        return Decline("the weight is not a matrix of its own")
    return {x: dim}


@rule("matmul")
def matmul(node: fx.Node, dim: int) -> Dims | Decline:
    """``a @ b``: row i of the result needs row i of a; leading dimensions are batches of both."""
    left, right = operand(node), operand(node, 1, "mat2" if "mat2" in node.kwargs else "other")
    rank = len(shape(node))
    if len(shape(left)) < 2 or len(shape(right)) < 2:
        return Decline("an operand is a vector")
    if dim == rank - 1:
        return Decline("the rows are columns of the right operand")
    if left is right:
        return Decline("both operands are the same tensor")
    if dim == rank - 2:
        return {left: len(shape(left)) - 2}
    dims: dict[fx.Node, int] = {}
    for side in (left, right):
        own = dim - (rank - len(shape(side)))
        if own >= 0 and not same_size(shape(side)[own], 1):
            dims[side] = own
    return dims or Decline("no operand carries the rows")


@rule("addmm")
def addmm(node: fx.Node, dim: int) -> Dims | Decline:
    """``addmm(bias, a, b)`` with a bias that is the same for every row."""
    if dim != 0 or len(shape(operand(node))) != 1:
        return Decline("the bias is not one vector, or the rows are columns")
    left = operand(node, 1, "mat1")
    return {left: 0} if left is not operand(node, 2, "mat2") else Decline("both operands are the same tensor")


@rule("embedding")
def embedding(node: fx.Node, dim: int) -> Dims | Decline:
    """``embedding(ids, table)``: every position is looked up alone."""
    ids = operand(node)
    value = tensor(ids)
    if value is None or value.is_floating_point():
        return Decline("its first operand is not the positions")
    if dim >= len(shape(ids)):
        return Decline("the rows are embedding features")
    return {ids: dim}


@rule("einsum")
def einsum(node: fx.Node, dim: int) -> Dims | Decline:
    """``einsum("bqd,bkd->bqk", x, y)``: every operand that has the letter of the rows."""
    equation, operands = node.args[0], list(node.args[1:])
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        return Decline("its equation does not name every dimension")
    terms, result = equation.replace(" ", "").split("->")
    letter = result[dim]
    dims: dict[fx.Node, int] = {}
    for term, x in zip(terms.split(","), operands, strict=True):
        if not isinstance(x, fx.Node) or term.count(letter) > 1 or (letter in term and x in dims):
            return Decline("an operand has the rows twice")
        if letter in term and not same_size(shape(x)[term.index(letter)], 1):
            dims[x] = term.index(letter)
    if len(set(operands)) < len(operands):
        return Decline("two operands are the same tensor")
    return dims or Decline("no operand carries the rows")
