"""Tensor subclasses: the operations on plain tensors that one of their operations is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def parts_of(value: Tensor) -> tuple[dict[str, Tensor], object]:
    """The tensors that a subclass is made of, by their names, and what else it needs to be made again."""
    names, context = value.__tensor_flatten__()  # type: ignore[attr-defined]
    return {name: getattr(value, name) for name in names}, context


def operations_inside(
    function: Callable[..., Any], examples: Sequence[Tensor], sizes: Mapping[int, Sequence[int]]
) -> fx.Graph:
    """What ``function`` computes of tensors like ``examples``, in operations of plain tensors alone.

    AOTAutograd takes subclasses apart in the same way, so the graph is what will be lowered. No data is read, no guard
    is added, and nothing is written in place in the result.

    Args:
        function: of as many tensors as there are examples.
        examples: real or fake; only shapes, strides, data types and devices count.
        sizes: place of an example that is no subclass -> the sizes that are taken instead of its own. All others have
            to be numbers.

    Returns:
        A graph with one input for each plain tensor, in order; its nodes hold examples in ``meta["val"]``.

    Raises:
        Exception: whatever the subclass raises where it can't be traced.
    """
    from torch._subclasses.functional_tensor import dispatch_functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode(), torch.no_grad():
        copies = [
            torch.empty(sizes[i], dtype=part.dtype, device=part.device)
            if i in sizes
            else torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device=part.device)
            for i, example in enumerate(examples)
            for part in _plain_parts(example)
        ]

        def of_plain(*tensors: Tensor) -> Any:
            left = iter(tensors)
            return function(*(_rebuilt(example, left) for example in examples))

        traced: fx.Graph = make_fx(dispatch_functionalize(of_plain))(*copies).graph
    return traced


def _plain_parts(value: Tensor) -> list[Tensor]:
    if not is_traceable_wrapper_subclass(value):
        return [value]
    return [plain for part in parts_of(value)[0].values() for plain in _plain_parts(part)]


def _rebuilt(example: Tensor, left: Iterator[Tensor]) -> Tensor:
    """A tensor like ``example`` of the next plain ones."""
    if not is_traceable_wrapper_subclass(example):
        return next(left)
    parts, context = parts_of(example)
    inner = {name: _rebuilt(part, left) for name, part in parts.items()}
    made: Tensor = type(example).__tensor_unflatten__(inner, context, example.shape, example.stride())
    return made
