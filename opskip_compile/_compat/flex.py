"""flex_attention: what stands in the block mask of its operator, torch 2.11 to 2.15."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockMask:
    """The fields of a block mask that say which keys a query reads.

    Attributes:
        part: how many blocks of keys, int ``(batch or 1, heads or 1, blocks of queries)``, and which, ``(..., blocks of
            keys)``, the mask function decides for each block of queries.
        full: as ``part``, the blocks of which every key is read; Nones if there are none.
        sizes: how many queries and how many keys make a block.
        function: ``(batch, head, query, key, *buffers) -> bool``.
    """

    part: tuple[Any, Any]
    full: tuple[Any, Any]
    sizes: tuple[int, int]
    function: Any

    @classmethod
    def of(cls, fields: Sequence[Any]) -> BlockMask:
        """Of the tuple that the operator is given (``BlockMask.as_tuple``), or of its nodes in a graph."""
        return cls((fields[2], fields[3]), (fields[4], fields[5]), (fields[-3], fields[-2]), fields[-1])


def flex_attention(*args: Any) -> Tensor:
    """The operator; the first of its results."""
    out: Tensor = torch.ops.higher_order.flex_attention(*args)[0]
    return out
