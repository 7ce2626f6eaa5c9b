"""Time of our own passes against the depth of the decoder, and the report's share of it: the best of some runs.

    python benchmarks/rewrite_time.py [--layers 9 18 36 72] [--runs 3]

The real Qwen3-VL decoder class without memory behind its weights, every operator skipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx

import opskip_compile as opskip
from opskip_compile.bench.decoders import Decoder
from opskip_compile.passes.pipeline import Resolved, rewrite


def best_report(layers: int, runs: int = 3) -> opskip.Report:
    """The quickest of some runs of the passes on one captured decoder."""
    schedule, reports = Resolved(opskip.Schedule.from_spec(f"silent:0-{layers - 1}"), "benchmark"), []
    model = Decoder("", "Qwen3VLText", opskip.Geometry(layers, 64, 128, 4, 2, 16)).build("meta")
    hidden = torch.empty(1, 48, 64, device="meta")
    inputs = hidden, torch.arange(48)[None] < 32  # the mask has data, so that its rows are counted

    def forward(hidden: Tensor, mask: Tensor) -> Tensor:
        return model(inputs_embeds=opskip.mark_visual(hidden, mask), use_cache=False).last_hidden_state

    def passes_only(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        reports.extend(rewrite(gm, lambda match, graph: schedule, inputs=example_inputs).report for _ in range(runs))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(forward, backend=passes_only, fullgraph=True)(*inputs)
    return min(reports, key=lambda report: report.milliseconds)


def main() -> None:
    """Print one row per depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[9, 18, 36, 72])
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    table = Table(title="time of the passes")
    for column in ("layers", "nodes", "ms", "ms per layer", "slowest pass", "report / passes"):
        table.add_column(column, justify="right")
    for layers in given.layers:
        report = best_report(layers, given.runs)
        *passes, making = report.passes
        assert making.name == "report" and report.prompt is not None
        slowest = max(passes, key=lambda done: done.milliseconds)
        time = sum(done.milliseconds for done in passes)
        table.add_row(
            str(layers),
            str(report.nodes_before),
            f"{time:.0f}",
            f"{time / layers:.1f}",
            f"{slowest.name} {slowest.milliseconds:.0f}",
            f"{making.milliseconds / time:.1%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
