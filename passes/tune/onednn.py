"""Let linear layers run in oneDNN where torch's BLAS is slow: float32, AMD with AVX-512.

On the AMD EPYC of ``benchmarks/results`` MKL, the BLAS of torch's x86 builds, multiplies at half the rate of oneDNN
(``prefill_cpu_8b.json``: plain and in oneDNN). Its choice among instruction sets is for Intel's processors alone
("Instruction Set Specific Dispatching" in the oneMKL developer guide). The same products are added in another order, so
results differ in the last bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils.flop_counter import register_flop_formula

from opskip_compile._compat import is_subclass, onednn_linear
from opskip_compile.passes.graph.origin import captured_name
from opskip_compile.passes.ops import Operation, call_of, declare, op_name, tensor
from opskip_compile.passes.ops.attention import flops_of_product

SMALLEST = 2**18  # entries of a weight
LEAST = 2**22  # multiply-adds of a call: with fewer, both take less than a tenth of a millisecond


@torch.library.custom_op("opskip::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear``, by oneDNN from 2^22 multiply-adds on.

    Args:
        x: float32 ``(..., in)`` on the CPU.
        weight: float32 ``(out, in)``, contiguous.
        bias: float32 ``(out,)`` or None.

    Returns:
        float32 ``(..., out)``, contiguous.
    """
    product = onednn_linear()
    if product is not None and x.numel() * weight.shape[0] >= LEAST:
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
declare(
    Operation("opskip::linear", ("input, weight, bias",), product=True, flops=flops_of_product("input")),
    functions=[LINEAR],
)


def use_onednn(graph: fx.Graph, captured: fx.Graph) -> int:
    """Let every linear layer that `linear` is made for call it, in place; returns how many.

    Args:
        graph: a rewritten graph, or the captured one itself.
        captured: what it was made of, with example values: a rewritten node has none of its own.
    """
    if onednn_linear() is None:
        return 0
    layers = [node for node in graph.nodes if node.op == "call_function" and op_name(node) == "linear"]
    examples = {node.name: tensor(node) for node in captured.nodes} if layers else {}

    def fits(node: object) -> bool:
        value = examples.get(captured_name(node)) if isinstance(node, fx.Node) else None
        return value is not None and _is_plain(value)

    changed = 0
    for node in layers:
        call = call_of(node)
        if call is None:
            continue
        x, weight, bias = call["input"], call["weight"], call["bias"]
        matrix = tensor(weight)
        # Under autocast the result has another type than the operands.
        if not (fits(node) and fits(x) and fits(weight) and (bias is None or fits(bias))) or matrix is None:
            continue
        if matrix.numel() < SMALLEST or not matrix.is_contiguous():
            continue
        node.target, node.args, node.kwargs = LINEAR, (x, weight, bias), {}
        changed += 1
    return changed


def _is_plain(value: Tensor) -> bool:
    return value.dtype == torch.float32 and value.device.type == "cpu" and not is_subclass(value)
