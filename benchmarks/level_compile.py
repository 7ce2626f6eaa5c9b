"""Compile time of schedules whose operators keep shares, and of levels: against one that skips whole operators.

python -m benchmarks.level_compile [--layers 4 8] [--rounds 1] [--json FILE]

Four levels are the hard case: every operator has shares of its own in them, as a calibration finds them. First calls in
processes of their own, cold and warm, as `opskip bench compile` takes them, in turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from opskip_compile.bench.compile_time import DENSE, Start, measure_starts
from opskip_compile.output.environment import environment
from opskip_compile.output.progress import progress
from opskip_compile.schedule.chooser import BUCKETS, Chooser, deepest
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.schedule.validation import write_json

# By operator: the shares that it keeps at four levels, full to deep.
SHARES = ((1, 0.5, 0.25, 0.1), (1, 1, 0.5, 0.25), (1, 0.25, 0.1, 0), (1, 0.5, 0.1, 0), (1, 1, 0.25, 0), (1, 1, 1, 0.1))
LEVELS = 4


def four_levels(layers: int) -> Schedule:
    """Operators take the entries of `SHARES` in turn."""
    levels = []
    for level in range(LEVELS):
        rules = []
        for i in range(2 * layers):
            share = SHARES[i % len(SHARES)][level]
            if share < 1:
                rules.append(f"{('transform', 'attend')[i % 2]}@keep={share}:{i // 2}")
        levels.append(Schedule.from_spec(" ".join(rules) or "none"))
    chooser = Chooser(((0.0,) * 2 * BUCKETS,) * LEVELS, (0.0,) * LEVELS, deepest(LEVELS, 0.0), 0.0)
    return Schedule(levels=tuple(levels), chooser=chooser)


def contenders(layers: int) -> dict[str, Schedule]:
    """The contenders by name: whole operators of one kind, of all kinds, a share of the rows, levels."""
    last = layers - 1
    states = ("silent", "attend", "transform")
    mixed = " ".join(f"{states[i % 3]}:{i}" for i in range(layers))
    return {
        "silent": Schedule.of(f"silent:0-{last}"),
        "silent, attend, transform in turn": Schedule.of(mixed),
        "silent, a quarter kept": Schedule.of(f"silent@keep=0.25:0-{last}"),
        "four levels": four_levels(layers),
    }


def figures(starts: Sequence[Start]) -> Iterator[tuple[str, float]]:
    """Seconds without the probe of the machine, and kernels, of both contenders, cold and warm."""
    for start in starts:
        who = f"{'dense' if start.contender == DENSE else 'opskip'}_{'warm' if start.warm else 'cold'}"
        yield who, round(start.own_seconds, 2)
        yield f"{who}_kernels", start.kernels


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--rounds", type=int, default=1, help="in which all take their turn; medians are shown")
    parser.add_argument("--only", nargs="+", help="contenders by the beginning of their names")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    for layers in given.layers:
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(given.rounds):
            for name, schedule in contenders(layers).items():
                if not given.only or name.startswith(tuple(given.only)):
                    with progress(Console(stderr=True)) as step:
                        starts = measure_starts(given.model, {layers: schedule}, visual=256, text=64, step=step)
                    runs.setdefault(name, []).append(dict(figures(starts)))
        for name, lines in runs.items():
            medians = {key: statistics.median(line[key] for line in lines) for key in lines[0]}
            found.append({"layers": layers, "schedule": name, "rounds": given.rounds, **medians})
            print(found[-1], flush=True)
    if given.json:
        write_json({"environment": environment("cpu", "float32"), "model": given.model, "found": found}, given.json)


if __name__ == "__main__":
    main()
