"""Whose features a merge puts into the embeddings: told by the token ids that its mask was compared with.

Where the config of a model names tokens of one modality only, or a schedule means all that it names, nothing has to be
told. Else the mask tells: ``input_ids == 151655`` is in the graph, or in one before it (`RowTokens.of_input`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from opskip_compile.passes.ops import argument, op_name, operand, tensor
from opskip_compile.schedule.modalities import MODALITIES, VISUAL

_SAME_ROWS = frozenset({"unsqueeze", "expand", "expand_as", "to", "clone", "contiguous", "view", "reshape"})
_EITHER = frozenset({"logical_or", "bitwise_or"})
OfInput = Callable[[fx.Node], frozenset[int] | None]


@dataclass(frozen=True)
class RowTokens:
    """What is known of a model's tokens, and which of them a schedule means.

    Attributes:
        modalities: that the schedule means.
        known: token ids of each modality; empty ones where only the modality is known. Empty if nothing is known.
        of_input: the tokens with which an input, a mask, was compared in a graph before this one; None if not known.
    """

    modalities: tuple[str, ...] = VISUAL
    known: Mapping[str, frozenset[int]] = field(default_factory=dict)
    of_input: OfInput = lambda node: None

    @property
    def means_visual(self) -> bool:
        """True if the rows of images and videos are meant, and no others that the model has."""
        there = set(self.known or MODALITIES)
        return there & {*self.modalities} == there & {*VISUAL}

    def takes(self, mask: fx.Node) -> bool | None:
        """True if the rows of ``mask`` are meant, False if they are others, None if that can't be told.

        Of a model of which nothing is known every merge is taken for images and videos.
        """
        if not self.known:
            return True if self.modalities in (VISUAL, MODALITIES) else None
        if self.known.keys() <= {*self.modalities}:
            return True
        if self.known.keys().isdisjoint(self.modalities):
            return False
        tokens = compared_tokens(mask, self.of_input)
        asked = frozenset[int]().union(*(ids for name, ids in self.known.items() if name in self.modalities))
        others = frozenset[int]().union(*(ids for name, ids in self.known.items() if name not in self.modalities))
        if tokens and tokens <= asked - others:
            return True
        return False if tokens and tokens <= others - asked else None


def compared_tokens(mask: fx.Node, of_input: OfInput) -> frozenset[int] | None:
    """The token ids of which ``mask`` says where they stand; None if that is not known.

    Args:
        of_input: as of `RowTokens`.
    """
    name, value = op_name(mask), tensor(mask)
    if value is None or value.dtype != torch.bool:
        return None
    if mask.op == "placeholder":
        return of_input(mask)
    if name in _SAME_ROWS:
        source = operand(mask)
        return None if source is None else compared_tokens(source, of_input)
    if name in _EITHER:
        sides = [operand(mask), operand(mask, "other")]
        one, other = (None if side is None else compared_tokens(side, of_input) for side in sides)
        return one | other if one and other else None
    if name != "eq":
        return None
    ids, token = operand(mask), argument(mask, "other")
    example = None if ids is None else tensor(ids)
    whole = example is not None and example.dim() == 2 and not example.is_floating_point()
    return frozenset({token}) if whole and type(token) is int else None
