"""What it costs to round the number of kept rows up, and what it is worth to count them before the graph runs.

python -m benchmarks.row_counts [--layers 8] [--visual 1024] [--text 50] [--rounds 7] [--json FILE]

Prefill of one decoder, alternated in one process: with sizes that the graph finds out (as under bare torch.compile),
with rows counted before it as `opskip_compile.compile` does, and with their number rounded up to multiples of 64 and
256. Ratios are to the sizes that the graph finds, medians; the ideal is the ratio of FLOPs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opskip_compile._compat import any_size, with_own_code
from opskip_compile.backend.reports import REPORTS
from opskip_compile.output.environment import environment
from opskip_compile.passes.row_counts import RowCounts
from opskip_compile.passes.runtime import mark_visual, name_rows
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.schedule.validation import write_json
from opskip_compile.timing.decoders import DECODERS

FOUND = "found by the graph"
MULTIPLES = (1, 64, 256)
SCHEDULES = ("late:0.5", "attend:all", "silent:all", "silent@keep=0.25:all")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(DECODERS), default="small")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--visual", type=int, default=1024)
    parser.add_argument("--text", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from rich.console import Console  # `benchmarks.gpu_check` runs without
    from rich.table import Table

    model: Any = DECODERS[given.model].cut(given.layers).build(given.device)
    width = DECODERS[given.model].geometry.hidden_size
    hidden = torch.randn(1, given.visual + given.text, width, device=given.device)
    mask = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=given.device)
    mask[:, 4 : 4 + given.visual] = True
    table, found = Table("schedule", "rows", "kept", "FLOPs: ideal", "to found by the graph"), []
    with torch.no_grad():
        for spec in SCHEDULES:
            found += rows_of(spec, one_schedule(model, hidden, mask, Schedule.of(spec), given.rounds))
    for row in found:
        spread = "" if row["name"] == FOUND else f" ({row['spread'][0]:.2f} - {row['spread'][1]:.2f})"
        cells = (str(row["kept"]), f"{row['ideal']:.2f}x", f"{row['ratio']:.2f}x{spread}")
        table.add_row(row["schedule"], row["name"], *cells)
    Console().print(table)
    if given.json:
        settings = {name: value for name, value in vars(given).items() if name not in ("json", "device")}
        write_json({"environment": environment(given.device, "float32"), **settings, "found": found}, given.json)


def one_schedule(
    model: Any, hidden: Tensor, mask: Tensor, schedule: Schedule, rounds: int
) -> dict[str, tuple[list[float], int, int]]:
    """Contender -> seconds of each round, FLOPs of the operators, and the most rows that one of them computes."""
    calls: dict[str, tuple[Callable[[], Any], int, int]] = {}
    for name in (FOUND, *(f"multiples of {multiple}" for multiple in MULTIPLES)):
        multiple = 0 if name == FOUND else int(name.rpartition(" ")[2])
        counts = RowCounts.of(schedule, multiple or 1)
        call = torch.compile(forward(model, counts.names), backend="opskip", options={"schedule": schedule})
        inputs = (hidden, mask, rooms_for(counts, mask) if multiple else ())
        before = REPORTS.count
        call(*inputs)
        (report,) = (each for each in REPORTS.since(before) if each.operators)
        kept = max(each.rows_after or 0 for each in report.operators if each.skipped)
        calls[name] = partial(call, *inputs), report.flops_after or 0, kept
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, (run, _, _) in calls.items():
            start = time.perf_counter()
            run()
            if hidden.device.type != "cpu":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: (seconds[name], flops, kept) for name, (_, flops, kept) in calls.items()}


def forward(model: Any, names: tuple[str, ...], skip: bool = True) -> Callable[..., Tensor]:
    """A forward with code of its own, of embeddings, visual rows and the room for the sets of these names.

    Without room the graph finds its sizes; without ``skip`` it is dense.
    """

    def call(embeds: Tensor, mask: Tensor, rooms: tuple[Tensor, ...]) -> Tensor:
        if skip:
            embeds = name_rows(embeds, mask, names, rooms) if rooms else mark_visual(embeds, mask)
        found: Tensor = model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return found

    return with_own_code(call)


def rooms_for(counts: RowCounts, mask: Tensor) -> tuple[Tensor, ...]:
    """What is counted of a prompt, of any size in the graph that is compiled for it."""
    rooms = counts.count(mask)
    for room in rooms:
        any_size(room, 0)
    return rooms


def rows_of(spec: str, measured: dict[str, tuple[list[float], int, int]]) -> list[dict[str, Any]]:
    """One row of the table for each contender."""
    base, flops, _ = measured[FOUND]
    rows = []
    for name, (seconds, own, kept) in measured.items():
        ratios = [a / b for a, b in zip(base, seconds, strict=True)]
        rows.append(
            {
                "schedule": spec,
                "name": name,
                "kept": kept,
                "ideal": round(flops / own, 4),
                "ratio": round(statistics.median(ratios), 4),
                "spread": [round(min(ratios), 4), round(max(ratios), 4)],
            }
        )
    return rows


if __name__ == "__main__":
    main()
