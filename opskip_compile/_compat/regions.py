"""Regions: graphs that a graph calls several times, here the layers of a decoder that are alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx
from torch._higher_order_ops import utils as hop_utils
from torch._subclasses import FakeTensor

from opskip_compile._compat.patches import Patch
from opskip_compile._compat.shapes import known
from opskip_compile._compat.tensors import memory_of

invoke_region = torch.ops.higher_order.invoke_subgraph
REGION = "opskip_region_"  # how the identifier of a region of ours begins


def _with_memory(traced: Callable[..., Any]) -> Callable[..., Any]:
    memory: WeakKeyDictionary[fx.GraphModule, dict[object, _Shapes]] = WeakKeyDictionary()

    def shapes_of_region(subgraph: Any, identifier: object, *operands: Any) -> Any:
        module = getattr(subgraph, "subgraph", subgraph)
        if not isinstance(module, fx.GraphModule) or not str(identifier).startswith(REGION):
            return traced(subgraph, identifier, *operands)
        nodes = tuple((node.name, node.target, f"{node.args} {node.kwargs}") for node in module.graph.nodes)
        forms = [_form(operand) for operand in operands]
        environments = {id(form[-1]): form[-1] for form in forms if form is not None}
        if None in forms or len(environments) != 1:
            return traced(subgraph, identifier, *operands)
        (environment,) = environments.values()
        known = memory.setdefault(module, {})
        key = type(subgraph), nodes, *(form[:-1] for form in forms if form is not None)
        if key not in known or known[key].environment is not environment:
            results = traced(subgraph, identifier, *operands)
            if not _are_new(results, operands):
                return results
            sizes = tuple((tuple(x.shape), x.stride(), x.dtype, x.device) for x in results)
            known[key] = _Shapes(environment, type(results), sizes)
            return results
        found = known[key]
        return found.kind(
            torch.empty_strided(size, stride, dtype=dtype, device=device) for size, stride, dtype, device in found.sizes
        )

    return shapes_of_region


def _table() -> tuple[Any, Any] | None:
    fakes: dict[object, Callable[..., Any]] = getattr(hop_utils, "registered_hop_fake_fns", {})
    return (fakes, invoke_region) if invoke_region in fakes else None


remember_shapes = Patch(_table, _with_memory)
"""Trace shapes through a region of ours once for each form of its operands, instead of in each of its calls.

torch remembers them, too, unless a result has a size that is known when the graph runs, as kept rows have: then a deep
decoder spends a tenth of its cold compile here. Only regions whose identifier begins with `REGION` are answered from
memory, and only while the region's graph, the operands' forms and the symbols of sizes are the same.
"""


@dataclass(frozen=True)
class _Shapes:
    """Results of a region: the shape environment of their sizes' symbols, list or tuple, and each one's form."""

    environment: object
    kind: type
    sizes: tuple[tuple[Any, Any, torch.dtype, torch.device], ...]


def _form(operand: object) -> tuple[object, ...] | None:
    """All that a result's form can depend on, the shape environment last; None for all but fake tensors and sizes."""
    if isinstance(operand, torch.SymInt):
        return "size", operand.node.expr, operand.node.shape_env
    if not isinstance(operand, FakeTensor):
        return None
    sizes = tuple(n.node.expr if isinstance(n, torch.SymInt) else n for n in _numbers(operand))
    kind = type(operand), operand.dtype, operand.device, operand.requires_grad, operand.dim()
    return *kind, sizes, operand.fake_mode.shape_env


def _numbers(value: object) -> tuple[int | torch.SymInt, ...]:
    """The sizes and strides of a tensor and where it starts; a size alone."""
    if isinstance(value, torch.Tensor):
        return (*value.shape, *value.stride(), value.storage_offset())
    return (value,) if isinstance(value, torch.SymInt) else ()


def _symbols(values: Iterable[object]) -> set[object]:
    """All symbols in the sizes of ``values``."""
    numbers = (n for value in values for n in _numbers(value) if isinstance(n, torch.SymInt))
    return {symbol for n in numbers for symbol in n.node.expr.free_symbols}


def _are_new(results: Any, operands: Sequence[Any]) -> bool:
    """True for a list or tuple of plain fake tensors in memory of their own, each from its start.

    None of their sizes may be one that the region itself finds out: that one is another in every call.
    """
    if type(results) not in (list, tuple) or any(type(x) is not FakeTensor or x.requires_grad for x in results):
        return False
    made, given = ([memory_of(x) for x in values if isinstance(x, torch.Tensor)] for values in (results, operands))
    starts = all(known(x.storage_offset() == 0) for x in results)
    return (
        starts and _symbols(results) <= _symbols(operands) and len({*made}) == len(made) and {*made}.isdisjoint(given)
    )
