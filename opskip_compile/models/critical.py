"""Which rows are critical, in plain code for the oracle: full attention weights, one element and one row at a time.

Shares no code with the compiler's `opskip_compile.passes.scores`, which says what a score is.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import ceil, sqrt
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from opskip_compile.errors import OpSkipError
from opskip_compile.schedule.chooser import BUCKETS, Chooser
from opskip_compile.schedule.left_out import LeftOut

ASKED = 16
GOLDEN = (sqrt(5) - 1) / 2


class Watch(Protocol):
    """What the oracle asks for critical rows: a mode that sees the attentions of a forward."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *raised: Any) -> Any: ...
    def begin(self, layer: int, visual: Tensor | None, written_from: int | None) -> None: ...
    def end(self) -> None: ...
    def enter(self, hidden: Tensor) -> None: ...
    def without_critical(self, left_out: Tensor, kind: str, rows: LeftOut) -> Tensor: ...


class AttentionWatch(TorchFunctionMode):
    """Sees every attention of the decoder's layers, and adds up what the text rows pay attention to.

    Attributes:
        scores: one list of numbers for each element, one number a row, after the attentions so far.
        before: the scores as they were before the layer that runs.
        levels: of each element, where a chooser was given.

    Args:
        chooser: chooses the level of each element; None without levels.
    """

    def __init__(self, chooser: Chooser | None = None) -> None:
        super().__init__()
        self.levels: list[int] = []
        self._chooser, self._hidden = chooser, torch.empty(0)
        self.scores: list[list[float]] = []
        self.before: list[list[float]] = []
        self._visual: Tensor | None = None
        self._asked: list[list[int]] = []
        self._inside = False
        self._written_from: int | None = None

    def begin(self, layer: int, visual: Tensor | None, written_from: int | None) -> None:
        """A layer begins.

        Args:
            layer: its number.
            visual: bool ``(batch, sequence)``, the visual rows of the forward; None without.
            written_from: where the keys of the rows begin in a cache of fixed size; None where they are the last ones.
        """
        if layer == 0:
            self._visual, self._asked = visual, []
            self.scores = [] if visual is None else [_spread(element) for element in visual.tolist()]
        self.before, self._inside, self._written_from = self.scores, visual is not None, written_from

    def enter(self, hidden: Tensor) -> None:
        """What enters the first layer, ``(batch, sequence, width)``."""
        self._hidden = hidden

    def end(self) -> None:
        """The layer has returned."""
        self._inside = False

    def without_critical(self, left_out: Tensor, kind: str, rows: LeftOut) -> Tensor:
        """The rows of a set that an operator leaves out after all; all of them where no scores are of these rows.

        A set without rows asks for no level: the attention of one row may have a form in which nothing is told.

        Args:
            left_out: bool ``(batch, sequence)``, the row set.
            kind: ``"attention"``, which chooses by the layers before, or ``"ffn"``, which knows its own layer's.
            rows: the share of the set that is updated, or that of each level.
        """
        scores = self.before if kind == "attention" else self.scores
        if len(scores) != len(left_out) or not left_out.any():
            return left_out
        if rows.shares and len(self.levels) != len(left_out):
            raise OpSkipError("oracle: no attention of the first layer has told which rows are padding, for the level")
        keep = [rows.shares[level] for level in self.levels] if rows.shares else [rows.keep] * len(left_out)
        return without_critical(left_out, scores, keep)

    def asked_of(self, visual: list[bool], reads_itself: list[bool]) -> list[int]:
        """The rows of an element that are asked: its last text rows that are not padding."""
        rows = [row for row, (image, own) in enumerate(zip(visual, reads_itself, strict=True)) if own and not image]
        return rows[-ASKED:]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._inside and func is F.scaled_dot_product_attention:
            self._see(*args, **kwargs)
        return func(*args, **kwargs)

    def _see(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        visual = self._visual
        if visual is None or query.shape[2] != visual.shape[1]:
            return
        rows, keys = query.shape[2], key.shape[2]
        start = self._written_from
        if start is None or start + rows > keys:  # a cache that grows, or one that is full and forgets the oldest
            start = keys - rows
        own_keys = slice(start, start + rows)
        with torch.no_grad():
            key = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
            products = torch.einsum("bhqd,bhkd->bhqk", query.double(), key)
            products *= 1 / sqrt(query.shape[-1]) if scale is None else scale
            if is_causal:
                attn_mask = torch.ones(1, 1, *products.shape[-2:], dtype=torch.bool, device=products.device).tril()
            if attn_mask is not None:
                if attn_mask.dtype == torch.bool:
                    attn_mask = torch.where(attn_mask, 0.0, -torch.inf)
                products = products + attn_mask.double()
            weights = products.softmax(-1).mean(1)[..., own_keys]
        if not self._asked:
            reads = torch.ones_like(visual)
            if attn_mask is not None and attn_mask.shape[-2] == rows:
                shown = attn_mask.expand(len(visual), *attn_mask.shape[-3:])[:, 0, :, own_keys]
                reads = shown.diagonal(dim1=-2, dim2=-1) > torch.finfo(query.dtype).min / 2
            if self._chooser is not None:
                text = (reads & ~visual).tolist()
                each = zip(self._hidden, visual.tolist(), text, strict=True)
                self.levels = [level_of(self._chooser, *element) for element in each]
            self._asked = [self.asked_of(*each) for each in zip(visual.tolist(), reads.tolist(), strict=True)]
        self.scores = [
            [score + sum(float(of[row, key]) for row in rows) for key, score in enumerate(scores)]
            for scores, of, rows in zip(self.scores, weights.cpu(), self._asked, strict=True)
        ]


def _spread(visual: list[bool]) -> list[float]:
    """Scores before the first attention: less than any attention, and an order that is spread over the image."""
    scores, count = [], 0
    for image in visual:
        count += image
        scores.append(1e-6 * (count * GOLDEN % 1))
    return scores


def level_of(chooser: Chooser, hidden: Tensor, visual: list[bool], text: list[bool]) -> int:
    """The level of one element: a mean of its text rows and one of its visual rows, added up in buckets.

    Args:
        hidden: ``(sequence, width)``, what enters the first layer.
        visual, text: of each row, if it is visual, and if it is text and no padding.
    """
    features: list[float] = []
    for wanted in (text, visual):
        rows = [row for row, is_wanted in zip(hidden.double(), wanted, strict=True) if is_wanted]
        mean = torch.stack(rows).mean(0).tolist() if rows else [0.0] * hidden.shape[-1]
        buckets = [0.0] * BUCKETS
        for column, value in enumerate(mean):
            buckets[column % BUCKETS] += value if (column + 1) * GOLDEN % 1 < 0.5 else -value
        features += buckets
    return chooser.choose(features)


def without_critical(left_out: Tensor, scores: list[list[float]], keep: list[float]) -> Tensor:
    """The rows that are left out after all.

    Args:
        left_out: bool ``(batch, sequence)``, the row set.
        scores: of every row of each element.
        keep: the share of the set that is updated, of each element.
    """
    result = left_out.clone()
    for element, of in enumerate(scores):
        rows = [row for row, out in enumerate(left_out[element].tolist()) if out]
        best = sorted(rows, key=lambda row: -of[row])[: ceil(Fraction(repr(keep[element])) * len(rows))]
        result[element, best] = False
    return result
