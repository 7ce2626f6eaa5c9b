"""Sizes: what is known of them while a graph is made, without adding a guard."""

from __future__ import annotations

import torch
from torch._library.fake_impl import allocate_size


def same_size(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """True if two sizes are equal for every input the graph may see; adds no guard."""
    return known(a == b)


def known_at_least(size: int | torch.SymInt, minimum: int) -> bool:
    """True if a size is no smaller for every input the graph may see; adds no guard."""
    return known(size >= minimum)


def size_hint(size: int | torch.SymInt) -> int | str:
    """The size as it was when the graph was captured; its symbol where it is not known before the graph runs."""
    if isinstance(size, int):
        return size
    hint = size.node.hint if size.node.has_hint() else None
    return int(hint) if isinstance(hint, int) else str(size)


def unbacked_size(minimum: int) -> torch.SymInt | int:
    """A size that is known when the graph runs, for the fake implementation of a custom op.

    ``torch.library.get_ctx().new_dynamic_size`` refuses unless ``capture_dynamic_output_shape_ops`` is set, and that
    option is read when Dynamo starts a frame, turns graph breaks of vision towers into errors and is not ours to set.
    """
    context = torch.library.get_ctx()
    shape_env = context._shape_env
    if shape_env is None:
        return context.new_dynamic_size(min=minimum)
    return allocate_size(shape_env, min_val=minimum)  # type: ignore[no-untyped-call, no-any-return]


def known(condition: bool | torch.SymBool) -> bool:
    """True if the condition holds for every input the graph may see; adds no guard."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(condition))
