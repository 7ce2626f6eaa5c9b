"""Decoders that transformers splits among processes: is the result right, and what is exchanged and computed less.

python -m benchmarks.tensor_parallel [--processes 2 4] [--families llava ...] [--lower eager] [--json FILE]

Processes of gloo on one machine, each with one thread. The error is that of the worst process to the oracle of the
whole dense model, over its largest logit. Bytes are what one process hands to collectives while its decoder runs,
counted by PyTorch's profiler from the calls that really run; dense against skipped, both compiled in the same way.
Seconds are of the slowest process: the median of rounds in which dense and skipped take turns. Processes that share
cores are slower than on devices of their own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import opskip_compile as opskip
from opskip_compile.models.tiny import FAMILIES, Family, visual_mask
from opskip_compile.output.environment import environment
from opskip_compile.schedule.validation import write_json
from tests.helpers.processes import bytes_in_decoder, several, split_model, with_heads
from tests.helpers.shrink import build
from tests.helpers.support.changes import CHANGES
from tests.helpers.support.zoo import ZOO

SCHEDULES = ("late:0.5", "attend:all", "silent:all", "silent@keep=0.25:all")
LAYOUT = ((4, *[1] * 15, 30),)  # sixteen images of 16 rows
WIDTH = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 32, "num_key_value_heads": 8}
EXPERTS = ("glm4v_moe", "qwen3_vl_moe")


@dataclass(frozen=True)
class Experts:
    """A family whose FFNs are four experts, two for each row, of the same width."""

    name: str

    def build(self, layers: int) -> Any:
        """The model with the same random weights every time."""

        def change(values: dict[str, Any]) -> None:
            CHANGES.get(self.name, lambda _: None)(values)
            values["text_config"].update(WIDTH, moe_intermediate_size=352)
            values["vision_config"]["out_hidden_size"] = WIDTH["hidden_size"]

        return build(self.name, layers, change)

    def inputs(self, layout: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """As of any family."""
        return ZOO[self.name].inputs(layout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    choices = sorted([*FAMILIES, *EXPERTS])
    parser.add_argument("--families", nargs="+", choices=choices, default=["llava", "qwen2_5_vl", "qwen3_vl"])
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES)
    parser.add_argument("--lower", choices=("eager", "inductor"), default="eager")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from rich.console import Console
    from rich.table import Table

    found: list[dict[str, Any]] = []
    for name in given.families:
        family = Experts(name) if name in EXPERTS else with_heads(name, **WIDTH)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model, inputs = family.build(given.layers), family.inputs(LAYOUT)
            model.save_pretrained(folder)
            wanted = [oracle(model, inputs, spec) for spec in given.schedules]
            for count in given.processes:
                settings = (given.schedules, given.lower, given.rounds)
                by_process = several(in_process, count, family, Path(folder), wanted, *settings, patience=1800)
                for spec, rows in zip(given.schedules, zip(*by_process, strict=True), strict=True):
                    about = {"lower": given.lower, "processes": count, "family": name, "schedule": spec}
                    found.append({**about, **worst(rows)})
    columns = ("lower", "processes", "family", "schedule", "error", "FLOPs", "KiB dense", "KiB skipped", "bytes", "ms")
    table = Table(*columns)
    for row in found:
        first, second = (f"{sum(row[key].values()) / 1024:,.1f}" for key in ("bytes_dense", "bytes_skipped"))
        times = f"{row['seconds_dense'] * 1e3:.0f} -> {row['seconds_skipped'] * 1e3:.0f}"
        cuts = (f"{row['flops_cut']:.1%}", first, second, f"{row['bytes_cut']:.1%}", times)
        table.add_row(row["lower"], str(row["processes"]), row["family"], row["schedule"], f"{row['error']:.1e}", *cuts)
    Console(width=140).print(table)
    if given.json:
        settings = {"layers": given.layers, "rounds": given.rounds, "layout": LAYOUT, "width": WIDTH}
        write_json({"environment": environment("cpu", "float32"), **settings, "found": found}, given.json)


def oracle(model: Any, inputs: dict[str, Any], spec: str) -> torch.Tensor:
    """The logits of the whole model."""
    with opskip.oracle(model, opskip.Schedule.of(spec), visual_mask(inputs)):
        logits: torch.Tensor = model(**inputs).logits
    return logits


def in_process(
    rank: int,
    family: Family | Experts,
    folder: Path,
    wanted: Sequence[torch.Tensor],
    schedules: Sequence[str],
    lower: str,
    rounds: int,
) -> list[dict[str, Any]]:
    """What one process measures, for each schedule."""
    warnings.simplefilter("error", opskip.NothingSkippedWarning)
    inputs, options = family.inputs(LAYOUT), {"lower": lower}
    dense = opskip.compile(split_model(folder), "none", options=dict(options))
    dense(**inputs)
    rows = []
    for spec, want in zip(schedules, wanted, strict=True):
        model = opskip.compile(split_model(folder), spec, options=dict(options))
        got = model(**inputs).logits
        report = opskip.last_report()
        seconds: dict[str, list[float]] = {"dense": [], "skipped": []}
        for turn in range(rounds + 1):
            for name, each in (("dense", dense), ("skipped", model)):
                distributed.barrier()
                start = time.perf_counter()
                each(**inputs)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        rows.append(
            {
                "error": float((got - want).abs().max() / want.abs().max()),
                "skipped": len(report.skipped),
                "flops": (report.flops_before, report.flops_after),
                "bytes_dense": bytes_in_decoder(dense, inputs),
                "bytes_skipped": bytes_in_decoder(model, inputs),
                **{f"seconds_{name}": statistics.median(values) for name, values in seconds.items()},
            }
        )
    return rows


def worst(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table of those of all processes, which exchange and compute the same."""
    (first, *others) = rows
    assert all((row["bytes_skipped"], row["flops"]) == (first["bytes_skipped"], first["flops"]) for row in others)
    before, after = first["flops"]
    whole, part = (sum(first[name].values()) for name in ("bytes_dense", "bytes_skipped"))
    return {
        **first,
        **{key: max(row[key] for row in rows) for key in ("error", "seconds_dense", "seconds_skipped")},
        "flops_cut": 1 - after / before,
        "bytes_cut": 1 - part / whole,
    }


if __name__ == "__main__":
    main()
