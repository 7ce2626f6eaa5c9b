"""A decoder of one's own, which names its visual rows by `mark_visual`, and the report on a small Qwen3-VL decoder."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

import opskip_compile as opskip
from opskip_compile.backend.resolve import resolve_schedule
from opskip_compile.passes.pipeline import rewrite
from opskip_compile.passes.state import Options
from opskip_compile.report.build import make_report

EAGER = {"lower": "eager"}


class Decoder(nn.Module):
    """A decoder of one's own: no transformers, rows named by mark_visual."""

    def __init__(self, layers: int = 2, width: int = 16, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken
        torch.manual_seed(0)
        self.attention = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.ffn = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.last = self.norm

    def forward(self, hidden: Tensor, visual: Tensor, skip: str = "") -> Tensor:
        """With ``skip``, the definition: the named operators drop their visual rows."""
        hidden = opskip.mark_visual(hidden, visual)
        if self.broken:
            torch._dynamo.graph_break()
        return self.decode(hidden, visual, skip)

    def decode(self, hidden: Tensor, visual: Tensor, skip: str = "") -> Tensor:
        """The layers on what was embedded."""
        drop = visual[..., None]
        for i, (attention, ffn) in enumerate(zip(self.attention, self.ffn, strict=True)):
            q, k, v, gate = attention(self.norm(hidden)).chunk(4, dim=-1)
            q, k, v = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (q, k, v))
            update = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            update = update.transpose(1, 2).flatten(2) * gate.sigmoid()
            hidden = hidden + (update.masked_fill(drop, 0) if f"{i}a" in skip else update)
            update = nn.functional.silu(ffn(self.norm(hidden)))
            hidden = hidden + (update.masked_fill(drop, 0) if f"{i}f" in skip else update)
        return self.last(hidden)


def visual(batch: int, length: int, start: int, stop: int) -> Tensor:
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[:, start:stop] = True
    return mask


def explain_qwen3_vl(
    layers: int, width: int, ffn: int, heads: int, kv_heads: int, head_dim: int, schedule: str | None
) -> list[opskip.Report]:
    """Capture a Qwen3-VL text decoder on the meta device and run the passes on it."""
    side = head_dim * 5 // 32
    config = Qwen3VLTextConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [head_dim // 2 - 2 * side, side, side],
        },
    )
    with torch.device("meta"):
        model = Qwen3VLTextModel(config).eval()

    def forward(hidden: Tensor, mask: Tensor) -> Tensor:
        return model(inputs_embeds=opskip.mark_visual(hidden, mask), use_cache=False).last_hidden_state

    reports = []

    def passes_only(gm: fx.GraphModule, inputs: object) -> object:
        parsed = None if schedule is None else opskip.Schedule.from_spec(schedule)
        asked = Options(lambda match, graph: resolve_schedule(parsed, match, graph))
        reports.append(make_report(rewrite(gm, asked)))
        return gm.forward  # the meta device can't run a graph with a row index

    # Not with the meta device as the default: Dynamo would trace that mode in every call.
    hidden = torch.empty(1, 48, width, device="meta")
    torch.compile(forward, backend=passes_only)(hidden, torch.empty(1, 48, dtype=torch.bool, device="meta"))
    return reports
