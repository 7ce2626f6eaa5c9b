"""Attention that finds out when it runs whether its mask is the causal one, and then does without it.

Given an attention mask, a compiled Hugging Face decoder builds a dense boolean one, because padding is not known before
the call. Most prompts have none, and PyTorch's causal kernels leave out the half of the scores that nobody may read.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from opskip_compile.passes.ops import Operation, declare
from opskip_compile.passes.ops.attention import flops_of_attention
from opskip_compile.passes.ops.families import plain


def is_causal(mask: Tensor) -> Tensor:
    """Whether a mask lets query row i read the keys up to i and no others.

    Args:
        mask: bool ``(batch or 1, heads or 1, queries, keys)``, True where a key may be read.

    Returns:
        bool ``()`` on the CPU, so that the device waits for it once and not in every layer.
    """
    queries, keys = (torch.arange(size, device=mask.device) for size in mask.shape[-2:])
    # Not `==`: Inductor of torch 2.11 fails to bound the comparison of two booleans.
    return torch.where(keys <= queries[:, None], mask, ~mask).all().cpu()


@torch.library.custom_op("opskip::attend", mutates_args=())
def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, causal: Tensor, scale: float | None, enable_gqa: bool
) -> Tensor:
    """``scaled_dot_product_attention`` under ``attn_mask``, by a causal kernel where ``causal`` says so.

    Args:
        query: floating point ``(batch, heads, queries, width of a head)``.
        key, value: of the same dtype, ``(batch, heads, keys, width)``; keys that no query may read, such as the free
            places of a static cache, cost nothing where the mask is causal.
        attn_mask: bool, as for `is_causal`.
        causal: what `is_causal` says of ``attn_mask``.
        scale, enable_gqa: as of ``scaled_dot_product_attention``.

    Returns:
        ``(batch, heads, queries, width of a value)`` in the memory order of ``(batch, queries, heads, width)``.
    """
    if bool(causal) and key.shape[2] >= query.shape[2]:
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=enable_gqa)
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask, scale=scale, enable_gqa=enable_gqa)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@attend.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, causal: Tensor, scale: float | None, enable_gqa: bool
) -> Tensor:
    batch, heads, rows, _ = query.shape
    return query.new_empty(batch, rows, heads, value.shape[-1]).transpose(1, 2)


@register_flop_formula(torch.ops.opskip.attend)
def _(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    """Scores and the product with the values, of every query with every key, as of the attention that it replaces."""
    return int(2 * query.numel() * key[-2] + 2 * query[:-1].numel() * key[-2] * value[-1])


declare(plain("opskip::is_causal", "mask"), functions=[is_causal])
ATTEND = torch.ops.opskip.attend.default
_OPERANDS = "query, key, value, attn_mask, causal, scale, enable_gqa"
declare(
    Operation("opskip::attend", (_OPERANDS,), product=True, mixes_rows=True, flops=flops_of_attention),
    functions=[ATTEND],
)
