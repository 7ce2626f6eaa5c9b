"""What a batch costs whose prompts take different levels: one of them full, the others without visual rows in any FFN.

python -m benchmarks.mixed_levels [--layers 4] [--visual 1024] [--batch 4] [--rounds 5] [--json FILE]

FFNs that take the rows of the whole batch in one list, against the same graph with as many rows for each element as the
most demanding one keeps, and against plain Inductor; alternated in one process, median ratios. The ideal is the ratio
of FLOPs, the mean over the prompts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from opskip_compile._compat import with_own_code
from opskip_compile.backend.reports import REPORTS
from opskip_compile.output.environment import environment
from opskip_compile.passes.levels import taken
from opskip_compile.passes.rewrite.row_sets import RowSets
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.schedule.chooser import BUCKETS, Chooser, deepest, sign
from opskip_compile.schedule.flops import count_flops
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.schedule.validation import write_json
from opskip_compile.timing.decoders import DECODERS
from opskip_compile.timing.peak_memory import peak_bytes

INDUCTOR, PACKED, FILLED = "Inductor", "one list for all", "filled up"
FULL = 10.0  # the first column of a prompt that is to be full, minus this of the others
BEFORE = 16  # text rows before the visual ones


def chooser() -> Chooser:
    """Takes the second of two levels where the first column of the text rows is negative."""
    weights = [[0.0] * 2 * BUCKETS for _ in range(2)]
    weights[1][0] = sign(0)
    return Chooser(tuple(map(tuple, weights)), (-FULL, 0.0), deepest(2, 0.0), 0.0)


def prompts(batch: int, visual: int, text: int, width: int) -> tuple[Tensor, Tensor]:
    """Embeddings and visual rows; the first prompt is to be full."""
    torch.manual_seed(0)
    hidden = torch.randn(batch, visual + text, width)
    mask = torch.zeros(batch, visual + text, dtype=torch.bool)
    mask[:, BEFORE : BEFORE + visual] = True
    hidden[..., 0] = -FULL
    hidden[0, :, 0] = FULL
    return hidden, mask


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(DECODERS), default="small")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--visual", type=int, default=1024)
    parser.add_argument("--text", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    decoder = DECODERS[given.model].cut(given.layers)
    model: Any = decoder.build()
    hidden, mask = prompts(given.batch, given.visual, given.text, decoder.geometry.hidden_size)
    ones = torch.ones(mask.shape, dtype=torch.int64)
    levels = (Schedule(), Schedule.of(f"attend:0-{given.layers - 1}"))
    schedule = Schedule(levels=levels, chooser=chooser())

    def dense(embeds: Tensor) -> Any:
        return model(inputs_embeds=embeds, attention_mask=ones, use_cache=True)

    def skipping() -> Callable[[Tensor], Any]:
        """Code of its own each time: Dynamo would take what it has compiled for the other."""

        def call(embeds: Tensor) -> Any:
            return dense(mark_visual(embeds, mask))

        return with_own_code(call)

    options: Any = {"schedule": schedule, "strict": True}
    calls: dict[str, Callable[[Tensor], Any]] = {INDUCTOR: torch.compile(dense, dynamic=False)}
    seconds: dict[str, list[float]] = {}
    with torch.no_grad():
        calls[INDUCTOR](hidden)
        for name in (PACKED, FILLED):
            calls[name] = torch.compile(skipping(), backend="opskip", options=options, dynamic=False)
            with mock.patch.object(RowSets, "_packs", RowSets._packs if name == PACKED else lambda *_: False):
                before = REPORTS.count
                calls[name](hidden)
                assert REPORTS.count == before + 1
            assert taken(schedule.digest) == (0, *[1] * (given.batch - 1))
        for turn in range(given.rounds + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call(hidden)
                if turn:
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
        peaks = {name: peak_bytes(lambda call=call: call(hidden), "cpu") for name, call in calls.items()}  # type: ignore[misc]
    sizes = {"visual_tokens": given.visual, "text_tokens": given.text, "text_before": BEFORE}
    each = [count_flops(decoder.geometry, schedule=levels[level], **sizes) for level in taken(schedule.digest)]
    ideal = sum(count.dense for count in each) / sum(count.skipped for count in each)
    report = {"model": decoder.title, **{k: v for k, v in vars(given).items() if k != "json"}, "ideal": round(ideal, 4)}
    for name in (PACKED, FILLED):
        ratios = [a / b for a, b in zip(seconds[INDUCTOR], seconds[name], strict=True)]
        report[name] = {
            "to_inductor": round(statistics.median(ratios), 4),
            "spread": [round(min(ratios), 4), round(max(ratios), 4)],
            "peak_to_inductor": round(peaks[name] / peaks[INDUCTOR], 4),
        }
        print(name, report[name])
    print(f"ideal {ideal:.2f}x")
    if given.json:
        write_json({"environment": environment("cpu", "float32"), **report}, given.json)


if __name__ == "__main__":
    main()
