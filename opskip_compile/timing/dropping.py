"""Token dropping as a baseline: from some layer on, the visual rows leave the sequence.

Written as plain model code over the decoder's own layers, without a dense attention mask and without the score
kernels of the published implementations, so it is never slower than they are. Positions stay those of the full prompt.

* VTW-like: every visual row leaves ("Boosting Multimodal Large Language Models with Visual Tokens Withdrawal",
  arXiv 2405.05803).
* FastV-like: a share of them stays, those nearest to the last row ("An Image is Worth 1/2 Tokens After Layer 2",
  arXiv 2403.06764). The nearness here is a dot product of hidden states instead of attention weights: it costs less
  and makes the same amount of rows leave.
* Before the decoder (layer 0): a share of them never enters it. The clock does not ask which rows these are; an
  evaluation does, and draws them or keeps the most diverse (`Dropping.by`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from opskip_compile._compat import cache_argument
from opskip_compile.schedule.geometry import Geometry


@dataclass(frozen=True)
class Dropping:
    """``share`` of the visual rows leaves before layer ``layer``.

    Which ones an evaluation lets stay: those with most ``"attention"`` in the layer before; at layer 0 some at
    ``"random"``, by a seed, or the most ``"diverse"`` ones.
    """

    layer: int
    share: float
    by: Literal["attention", "random", "diverse"] = "attention"
    seed: int = 0

    def kept(self, visual: int) -> int:
        """Visual rows that stay."""
        return visual - round(self.share * visual)

    def flops(self, geometry: Geometry, visual: int, text: int) -> int:
        """FLOPs of one prefill (DESIGN section 6), the choice of rows not counted."""
        full, few = visual + text, self.kept(visual) + text
        before = geometry.attention(full, full) + geometry.ffn(full)
        after = geometry.attention(few, few) + geometry.ffn(few)
        return self.layer * before + (geometry.num_layers - self.layer) * after

    def forward(self, model: Any, hidden: Tensor, visual: Tensor, text: Tensor) -> tuple[Tensor, Any]:
        """One prefill.

        Args:
            hidden: ``(1, sequence, width)``.
            visual, text: int64, the places of the visual and of the other rows.

        Returns:
            The last hidden state of the rows that stay, ``(1, rows, width)``, and the cache.
        """
        cache = DynamicCache(config=model.config)
        places = torch.arange(hidden.shape[1], device=hidden.device)[None]
        multimodal = "mrope_section" in model.config.rope_parameters
        cos, sin = model.rotary_emb(hidden, places[None].expand(3, -1, -1) if multimodal else places)
        for i, layer in enumerate(model.layers):
            if i == self.layer:
                rows = self._rows(hidden, visual, text)
                hidden, cos, sin = (x.index_select(1, rows) for x in (hidden, cos, sin))
            hidden = layer(
                hidden,
                attention_mask=None,
                position_embeddings=(cos, sin),
                use_cache=True,
                **{cache_argument(layer.forward): cache},
            )
        return model.norm(hidden), cache

    def _rows(self, hidden: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        kept = self.kept(len(visual))
        if kept:
            scores = hidden[0].index_select(0, visual) @ hidden[0, -1]
            text = torch.cat([text, visual[scores.topk(kept).indices]])
        return text.sort().values
