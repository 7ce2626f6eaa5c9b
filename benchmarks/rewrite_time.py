"""Time of our own passes against the depth of the decoder: the best of three runs on one captured graph.

    python benchmarks/rewrite_time.py [--layers 9 18 36 72]

The real Qwen3-VL decoder class without memory behind its weights, every operator skipped.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from prefill import mrope_section
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx
from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

import opskip_compile as opskip
from opskip_compile.passes.pipeline import Resolved, rewrite


def best_report(layers: int, runs: int = 3) -> opskip.Report:
    """The quickest of some runs of the passes on one captured decoder."""
    config = Qwen3VLTextConfig(
        vocab_size=8,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": mrope_section(16)},
    )
    schedule, reports = Resolved(opskip.Schedule.from_spec(f"silent:0-{layers - 1}"), "benchmark"), []
    with torch.device("meta"):
        model = Qwen3VLTextModel(config).eval()
        inputs = torch.empty(1, 48, 64), torch.empty(1, 48, dtype=torch.bool)

    def forward(hidden: Tensor, mask: Tensor) -> Tensor:
        return model(inputs_embeds=opskip.mark_visual(hidden, mask), use_cache=False).last_hidden_state

    def passes_only(gm: fx.GraphModule, example_inputs: object) -> Any:
        reports.extend(rewrite(gm, lambda match, graph: schedule).report for _ in range(runs))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad(), torch.device("meta"):
        torch.compile(forward, backend=passes_only, fullgraph=True)(*inputs)
    return min(reports, key=lambda report: report.milliseconds)


def main() -> None:
    """Print one row per depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[9, 18, 36, 72])
    table = Table(title="time of the passes")
    for column in ("layers", "nodes", "ms", "ms per layer", "slowest pass"):
        table.add_column(column, justify="right")
    for layers in parser.parse_args().layers:
        report = best_report(layers)
        slowest = max(report.passes, key=lambda done: done.milliseconds)
        time = report.milliseconds
        table.add_row(
            str(layers),
            str(report.nodes_before),
            f"{time:.0f}",
            f"{time / layers:.1f}",
            f"{slowest.name} {slowest.milliseconds:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
