"""Norms, softmax and reductions: row by row as long as they do not reduce over the rows."""

from __future__ import annotations

from torch import fx

from opskip_compile.passes.ops.registry import Decline, Dims, all_tensors, argument, broadcast, operand, rule, shape


def _reduced(node: fx.Node, rank: int) -> tuple[int, ...] | None:
    dims = argument(node, 1, "dim", node.kwargs.get("axis"))
    if dims is None:
        return None
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    return tuple(d % rank for d in dims)


@rule("mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp", "all", "any")
def reduce(node: fx.Node, dim: int) -> Dims | Decline:
    """A reduction over other dimensions; without ``keepdim`` the later ones move up."""
    x = operand(node)
    rank = len(shape(x))
    reduced = _reduced(node, rank)
    if reduced is None:
        return Decline("it reduces over all dimensions")
    left = [d for d in range(rank) if d not in reduced]
    source = dim if len(shape(node)) == rank else left[dim]
    if source in reduced:
        return Decline("it reduces over the rows")
    return {x: source}


@rule("max", "min")
def extreme(node: fx.Node, dim: int) -> Dims | Decline:
    """Of two tensors, or along a dimension: `getitem` takes the values and the indices apart."""
    x, along = operand(node), argument(node, 1, "other", node.kwargs.get("dim"))
    if isinstance(along, fx.Node):
        return broadcast(node, dim, all_tensors(node), len(shape(node)))
    if not isinstance(along, int):
        return Decline("it reduces over all dimensions")
    along %= len(shape(x))
    if not argument(node, 2, "keepdim", False):
        return {x: dim + (dim >= along)}
    return Decline("it reduces over the rows") if along == dim else {x: dim}


@rule("softmax", "log_softmax", "cumsum", "cumprod")
def along_one_dimension(node: fx.Node, dim: int) -> Dims | Decline:
    """Works along one dimension and keeps the shape."""
    x = operand(node)
    along = argument(node, 1, "dim")
    if not isinstance(along, int):
        return Decline("the dimension it works along is not one number")
    if along % len(shape(x)) == dim:
        return Decline("it works along the rows")
    return {x: dim}


@rule("layer_norm", "rms_norm")
def layer_norm(node: fx.Node, dim: int) -> Dims | Decline:
    """Normalises over the last dimensions."""
    x = operand(node)
    normalized = argument(node, 1, "normalized_shape")
    if dim >= len(shape(x)) - len(normalized):
        return Decline("it normalises over the rows")
    return {x: dim}
