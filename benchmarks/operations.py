"""The table of operations against PyTorch's own samples: every operation, every spelling, every dimension as the rows'.

    python -m benchmarks.operations --json FILE --markdown FILE      # about half an hour on one core
    python -m benchmarks.operations --samples 2 --only softmax matmul
    python -m benchmarks.operations --graphs 200                     # random decoders that write in place

The exit code is 1 if any graph came out wrong, or any fact about memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from opskip_compile.output.environment import environment
from opskip_compile.passes.ops import TABLE, known_operations
from tests.helpers.in_place_programs import run_programs
from tests.helpers.sample_facts import check_facts, check_facts_of_others
from tests.helpers.sample_graphs import check_operation
from tests.helpers.samples import others


def check(name: str, most: int | None) -> dict[str, Any]:
    """Graphs around one operation and facts about its memory."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    facts = check_facts(name, most, every_type=True)
    row: dict[str, Any] = {"operation": name, "facts": facts.calls, "wrong_facts": facts.wrong}
    if name in known_operations():
        tally = check_operation(name, most, every_type=True)
        row.update(vars(tally), declined=dict(tally.declined.most_common()))
    return row


def rows_of(names: list[str], most: int | None, jobs: int) -> Iterator[dict[str, Any]]:
    """Every operation, in the order of their names."""
    if jobs == 1:
        yield from (check(name, most) for name in names)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(check, names, [most] * len(names))


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over all operations."""
    ruled = [row for row in rows if "graphs" in row and row["samples"]]
    declined: Counter[str] = Counter()
    for row in ruled:
        declined.update(row["declined"])
    return {
        "operations": len(ruled),
        **{key: sum(row[key] for row in ruled) for key in ("samples", "calls", "graphs", "pushed", "kept", "skipped")},
        "declined": dict(declined.most_common()),
        "wrong": sum(len(row["wrong"]) for row in ruled),
        "facts": sum(row["facts"] for row in rows),
        "wrong_facts": sum(len(row["wrong_facts"]) for row in rows),
    }


def markdown(rows: list[dict[str, Any]], whole: dict[str, Any]) -> str:
    """The table for people."""
    declined = sum(whole["declined"].values())
    lines = [
        "# The table of operations against PyTorch's own samples",
        "",
        "Written by `python -m benchmarks.operations`. A graph selects rows behind one call of an operation; it is",
        "rewritten by the passes, run, and compared with the graph as it was, mutated inputs included. Samples of each",
        f"operation: {whole['samples_of_each']}.",
        "",
        f"**{whole['operations']} operations, {whole['samples']:,} samples, {whole['calls']:,} calls, "
        f"{whole['graphs']:,} graphs: {whole['pushed']:,} pushed, {declined:,} declined with a reason, "
        f"{whole['kept']:,} left because the whole result is read, {whole['wrong']} wrong.** "
        f"What {whole['facts']:,} calls write to and share: {whole['wrong_facts']} wrong. "
        f"{whole['skipped']:,} graphs were not counted, as they do not run as they were.",
        "",
        "Why declined: " + "; ".join(f"{why} {n:,}" for why, n in whole["declined"].items()) + ".",
        "",
        "| operation | samples | calls | graphs | pushed | declined | kept | wrong | why declined |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        if "graphs" in row and row["samples"]:
            kinds = Counter(row["declined"])
            cells = (row["samples"], row["calls"], row["graphs"], row["pushed"], sum(kinds.values()), row["kept"])
            why = "; ".join(f"{kind} {n}" for kind, n in kinds.most_common())
            numbers = " | ".join(f"{n:,}" for n in (*cells, len(row["wrong"])))
            lines.append(f"| `{row['operation']}` | {numbers} | {why} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, print the totals, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, help="of each operation and type; without it all")
    parser.add_argument("--only", nargs="+", help="names of operations")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--graphs", type=int, help="random decoders that write in place, instead")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.perf_counter()
    if given.graphs:
        ran = run_programs(tqdm(range(given.graphs), unit="graph"), given.seed)
        print("\n".join(ran.wrong))
        print(f"{ran}, {time.perf_counter() - start:.0f} s")
        return 1 if ran.wrong else 0
    names = given.only or sorted(TABLE)
    rows = []
    for row in tqdm(rows_of(names, given.samples, given.jobs), total=len(names), unit="operation"):
        rows.append(row)
        for text in (*row.get("wrong", ()), *row["wrong_facts"]):
            tqdm.write(f"WRONG {row['operation']}: {text[:300]}")
    unknown = [] if given.only else [check_facts_of_others(info, given.samples) for info in others()]
    whole = totals(rows)
    whole["facts_of_others"] = sum(facts.calls for facts in unknown)
    whole["wrong_facts"] += sum(len(facts.wrong) for facts in unknown)
    for facts in unknown:
        print(*(f"WRONG {text[:300]}" for text in facts.wrong), sep="\n", end="")
    whole.update(
        samples_of_each=given.samples or "all", seconds=round(time.perf_counter() - start), torch=torch.__version__
    )
    print(json.dumps(whole, indent=1))
    if given.json:
        given.json.write_text(
            json.dumps({**environment("cpu", "float32"), "totals": whole, "operations": rows}, indent=1) + "\n"
        )
    if given.markdown:
        given.markdown.write_text(markdown(rows, whole))
    return 1 if whole["wrong"] or whole["wrong_facts"] else 0


if __name__ == "__main__":
    sys.exit(main())
