"""The attention of a FlashAttention package, for all rows by its own kernel and for kept rows by PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opskip_compile._compat.operations import qualified_name
from opskip_compile.passes.runtime import causal_mask

KERNEL = "_flash_attn_forward"
"""What packages call their kernel, each in a library of its own."""


def name_of_operator(target: Any) -> str:
    """``"library::name"`` of an operator of a library, by which `attend_by_package` finds it again."""
    return "::".join(qualified_name(target))


def attend_by_package(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool,
    scale: float | None,
    package: str,
    names: Sequence[str],
    given: dict[str, Any],
    rows: Tensor | None = None,
) -> Tensor:
    """``softmax(scale * q k^T) v`` for each head.

    Args:
        query: float16 or bfloat16 ``(batch, queries, heads, width of a head)``.
        key, value: ``(batch, keys, heads, width)``, or fewer heads that several heads of queries share.
        is_causal: query i reads the keys up to i.
        scale: of the products; None is ``1 / sqrt(width)``.
        package: name of the operator.
        names: what it calls the three tensors.
        given: its other arguments.
        rows: int64 ``(batch, queries)``: which rows the queries are, where they are not all of them. PyTorch's kernels
            compute those, under a mask.

    Returns:
        ``(batch, queries, heads, width of a value)``.
    """
    if rows is None:
        library, _, name = package.partition("::")
        tensors = dict(zip(names, (query, key, value), strict=True))
        out: Tensor = getattr(getattr(torch.ops, library), name)(**tensors, **given)[0]
        return out
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return attend_kept(query, key, value, causal_mask(rows, key), scale).transpose(1, 2)


def attend_kept(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """``scaled_dot_product_attention`` under a mask, with a key for each head as kernels for a GPU want it then."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
