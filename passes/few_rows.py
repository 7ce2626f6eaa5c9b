"""Let the linear layers of the kept rows run in oneDNN, where BLAS is slow: few rows and a large weight, float32, x86.

With few rows the BLAS that ``linear`` calls loses more of its speed than oneDNN does (measured on an AMD EPYC, see
``benchmarks/results/prefill_cpu_options.json``). The same products are added in another order, so results differ in the
last bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils.flop_counter import register_flop_formula

from opskip_compile._compat import is_subclass, onednn_linear
from opskip_compile.graphs.origin import captured_name, origin
from opskip_compile.passes.ops import op_name, tensor
from opskip_compile.passes.rules.registry import argument, operand

FEWEST, MOST = 8, 512  # rows; below, the call costs more than it saves, above, both do as well
SMALLEST = 2**20  # entries of a weight


@torch.library.custom_op("opskip::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear``, by oneDNN where ``x`` has 8 to 512 rows.

    Args:
        x: float32 ``(..., in)`` on the CPU; all dimensions but the last are rows.
        weight: float32 ``(out, in)``, contiguous.
        bias: float32 ``(out,)`` or None.

    Returns:
        float32 ``(..., out)``, contiguous.
    """
    product = onednn_linear()
    if product is not None and FEWEST * x.shape[-1] <= x.numel() <= MOST * x.shape[-1]:
        out: Tensor = product(x.contiguous(), weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


@linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@register_flop_formula(torch.ops.opskip.linear)
def _(x: torch.Size, weight: torch.Size, *args: Any, **kwargs: Any) -> int:
    """A multiply-add is two, as of the ``linear`` that it replaces."""
    return int(2 * x.numel() * weight[0])


LINEAR = torch.ops.opskip.linear.default


def use_kernels_for_few_rows(graph: fx.Graph, captured: fx.Graph) -> int:
    """Rewrite every linear layer of kept rows that `linear` is made for; returns how many.

    Args:
        graph: a rewritten graph.
        captured: what it was made of, with example values: a rewritten node has none of its own.
    """
    if onednn_linear() is None:
        return 0
    twins = [node for node in graph.nodes if (made := origin(node)) is not None and made.twin and made.rows]
    found = [node for node in twins if op_name(node) == "linear"]
    examples = {node.name: tensor(node) for node in captured.nodes} if found else {}

    def fits(node: object) -> bool:
        value = examples.get(captured_name(node)) if isinstance(node, fx.Node) else None
        return value is not None and _is_plain(value)

    changed = 0
    for node in found:
        x, weight, bias = operand(node, 0, "input"), operand(node, 1, "weight"), argument(node, 2, "bias")
        matrix = tensor(weight)
        # Under autocast the result has another type than the operands.
        if not (fits(node) and fits(x) and fits(weight) and (bias is None or fits(bias))) or matrix is None:
            continue
        if matrix.numel() < SMALLEST or not matrix.is_contiguous():
            continue
        with graph.inserting_before(node):
            new = graph.create_node("call_function", LINEAR, (x, weight, bias), name=f"{node.name}_few")
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        changed += 1
    return changed


def _is_plain(value: Tensor) -> bool:
    return value.dtype == torch.float32 and value.device.type == "cpu" and not is_subclass(value)
