"""How large a layer's visual updates are and what the answer notices of them: the figures of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opskip_compile.schedule.rules import OPERATORS

SILENT = 0.01  # a layer below this share of the largest effect is called answer-silent
PARTS: Mapping[str, tuple[str, ...]] = {"layer": OPERATORS, "attention": ("attention",), "ffn": ("ffn",)}


@dataclass(frozen=True)
class Effect:
    """One operator of a layer, or both.

    Attributes:
        update: norm of the update by that of the residual stream before it, the mean over visual rows and samples.
        divergence: KL(dense || skipped) at the answer rows with it skipped alone, nats.
        turned: 1 - cosine of the residual stream behind the last layer at the answer rows.
    """

    update: float
    divergence: float
    turned: float


@dataclass(frozen=True)
class LayerEffect:
    """One layer; ``silent`` if leaving all of it out does less than `SILENT` of what the most important layer does."""

    layer: int
    effects: Mapping[str, Effect]
    silent: bool

    def of(self, part: str) -> Effect:
        """Of ``"layer"``, ``"attention"`` or ``"ffn"``."""
        return self.effects[part]
