"""flex_attention, for all rows by its own kernel and for kept rows by PyTorch's under the mask that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opskip_compile._compat import BlockMask, flex_attention
from opskip_compile.passes.packages import attend_kept


def attend_by_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any,
    block_mask: Sequence[Any],
    scale: float,
    kernel_options: dict[str, Any],
    score_buffers: Sequence[Any],
    mask_buffers: Sequence[Any],
    by_head: bool,
    rows: Tensor | None = None,
) -> Tensor:
    """``softmax(scale * q k^T) v`` of the keys that the block mask lets a query read; 0 where it reads none.

    Args:
        query: floating point ``(batch, heads, queries, width of a head)``.
        key, value: ``(batch, heads, keys, width)``, or fewer heads that several heads of queries share.
        score_mod, block_mask, scale, kernel_options, score_buffers, mask_buffers: of the operator; ``score_mod`` gives
            each score back as it is.
        by_head: the mask function looks at the head.
        rows: int64 ``(batch or 1, queries)``: which rows the queries are, where they are not all of them.

    Returns:
        ``(batch, heads, queries, width of a value)``.
    """
    if rows is None:
        how = (tuple(block_mask), scale, kernel_options, tuple(score_buffers), tuple(mask_buffers))
        return flex_attention(query, key, value, score_mod, *how)
    heads = query.shape[1] if by_head else 1
    mask = dense_mask(BlockMask.of(block_mask), mask_buffers, rows, query.shape[0], heads, key.shape[2])
    out = attend_kept(query, key, value, mask, scale)
    return torch.where(mask.any(-1, keepdim=True), out, torch.zeros_like(out))


def dense_mask(
    block_mask: BlockMask, buffers: Sequence[Any], rows: Tensor, batch: int, heads: int, keys: int
) -> Tensor:
    """Which keys some queries read, bool ``(batch, heads or more, n, keys)``.

    Args:
        block_mask: of all queries.
        buffers: what its function is given besides.
        rows: int64 ``(batch or 1, n)``, the queries.
        batch, heads, keys: sizes.
    """
    rows = rows.expand(batch, -1)
    found = block_mask.function
    rest = (None,) * len(buffers)
    for places in ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, 0, None)):
        found = torch.vmap(found, in_dims=(*places, *rest))
    key = torch.arange(keys, device=rows.device)
    element, head = torch.arange(batch, device=rows.device), torch.arange(heads, device=rows.device)
    read: Tensor = found(element, head, rows, key, *buffers)
    queries_of_block, keys_of_block = block_mask.sizes
    at, blocks = (rows // queries_of_block, key // keys_of_block), -(-keys // keys_of_block)
    read = read & _of_blocks(block_mask.part, at, blocks)
    return read if block_mask.full[0] is None else read | _of_blocks(block_mask.full, at, blocks)


def _of_blocks(lists: tuple[Tensor, Tensor], at: tuple[Tensor, Tensor], blocks: int) -> Tensor:
    """Bool ``(batch, heads or 1, n, keys)``: the block of the key is one of those that are listed for the query's."""
    (count, index), (queries, keys) = lists, at
    listed = torch.arange(index.shape[-1], device=index.device) < count[..., None]
    hit = index[..., None] == torch.arange(blocks, device=index.device)
    dense = (hit & listed[..., None]).any(-2).expand(len(queries), -1, -1, -1)
    element = torch.arange(len(queries), device=index.device)[:, None, None, None]
    head = torch.arange(dense.shape[1], device=index.device)[None, :, None, None]
    return dense[element, head, queries[:, None, :, None], keys]
