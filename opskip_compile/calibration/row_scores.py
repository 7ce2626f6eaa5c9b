"""Which rows are critical, by the compiler's own scores, for the many forwards of a calibration.

The oracle's own watch computes every attention once more, in full; this one asks the prompt's last text rows, as a
compiled graph does. What was seen in layers that a replay leaves out can be put in their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from opskip_compile.passes.runtime import kept_rows
from opskip_compile.passes.scores import probe_rows, row_scores, spread_scores
from opskip_compile.schedule.left_out import LeftOut


class RowScores(TorchFunctionMode):
    """Adds up the scores of `opskip_compile.passes.scores` in a forward of the model, without a cache.

    Args:
        visual: bool ``(batch, sequence)``, the visual rows.
        prompt: bool ``(batch, sequence)``, the rows of the prompt: text behind it is not asked, since a prefill has
            none.

    Attributes:
        scores: so far, float32 ``(batch, sequence)``.
        before: as they were before the layer that runs.
        after: the scores after each layer that has run.
    """

    def __init__(self, visual: Tensor, prompt: Tensor) -> None:
        super().__init__()
        self.after: list[Tensor] = []
        self.visual, self._answered = visual, ~prompt
        self.scores = self.before = spread_scores(visual)
        self._asked: tuple[Tensor, Tensor] | None = None  # which rows are asked, and where the index is none twice
        self._known: Sequence[Tensor] = ()
        self._inside = False

    def recall(self, after: Sequence[Tensor]) -> None:
        """The next forward computes nothing in its first layers, after which the scores were these."""
        self._known = after

    def begin(self, layer: int, visual: Tensor | None, written_from: int | None) -> None:
        """As for the oracle's watch."""
        if layer == 0:
            self.after, self.scores = [], spread_scores(self.visual)
        self.before, self._inside = self.scores, visual is not None and layer >= len(self._known)

    def end(self) -> None:
        """The layer has returned."""
        if len(self.after) < len(self._known):
            self.scores = self._known[len(self.after)]
        self.after.append(self.scores)
        self._inside = False

    def enter(self, hidden: Tensor) -> None:
        """As for the oracle's watch; nothing here depends on it."""

    def without_critical(self, left_out: Tensor, kind: str, rows: LeftOut) -> Tensor:
        """As for the oracle's watch: the highest scores are kept, the first of equals."""
        scores = self.before if kind == "attention" else self.scores
        order = scores.masked_fill(~left_out, float("-inf")).argsort(dim=1, descending=True, stable=True)
        counts = [[rows.critical(count)] for count in left_out.sum(1).tolist()]
        kept = torch.arange(left_out.shape[1]) < torch.tensor(counts)
        return left_out & ~torch.zeros_like(left_out).scatter(1, order, kept.to(left_out.device))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._inside and func is F.scaled_dot_product_attention:
            self.see(*args, **kwargs)
        return func(*args, **kwargs)

    def see(
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
        """One attention of the layer that runs, with the parameters of `scaled_dot_product_attention`."""
        rows = self.visual.shape[1]
        if query.dim() != 4 or query.shape[2] != rows or key.shape[2] != rows:
            return
        if attn_mask is not None and attn_mask.dim() != 4:  # the compiler takes no scores of such an attention
            return
        by_row = attn_mask is not None and attn_mask.shape[2] != 1
        with torch.no_grad():
            if self._asked is None:
                others = probe_rows(self.visual | self._answered, attn_mask if by_row else None, None)
                asked, live = kept_rows(others, False)
                self._asked = asked, live.unsqueeze(-1)
            asked, live = self._asked
            take = asked[:, None, :, None]
            queries = query.gather(2, take.expand(-1, query.shape[1], -1, query.shape[3]))
            if by_row and attn_mask is not None:
                shape = (len(query), attn_mask.shape[1], -1, attn_mask.shape[3])
                attn_mask = attn_mask.expand(len(query), *attn_mask.shape[1:]).gather(2, take.expand(*shape))
            self.scores = row_scores(queries, key, attn_mask, asked, live, self.scores, None, scale, is_causal)
