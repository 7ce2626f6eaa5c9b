"""The support matrix: measure every cell against the oracle, and write the tables.

    python -m benchmarks.support_matrix [--keep FILE]     # about an hour on 2 cores
    python -m benchmarks.support_matrix --only flex       # again the cells whose form has this in its name
    python -m benchmarks.support_matrix --tables-only     # the tables again from the figures

The cells are tests (``tests/models/test_support.py --every-cell``); this runs them, writes what they say to
``benchmarks/results/checks/support.json``, all cells in words to ``SUPPORT.md`` beside it, and the matrix into
``docs/support.md``. If a cell fails, nothing is published.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from opskip_compile.output.environment import environment
from tests.helpers.support import COLUMNS, FORMS, ZOO

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "checks"
BEGIN, END = "<!-- support matrix: begin -->", "<!-- support matrix: end -->"
Cells = Mapping[str, Mapping[str, tuple[str, str]]]


def measure(kept: Path | None, only: str = "") -> dict[str, dict[str, tuple[str, str]]]:
    """Run the cells in two processes, all or those with ``only`` in their name; family -> form -> state and reason."""
    with tempfile.TemporaryDirectory() as folder:
        out = kept or Path(folder) / "cells.jsonl"
        wanted = f"test_cell and {only}" if only else "test_cell"
        tests = ["tests/models/test_support.py", "-k", wanted, "--every-cell", "--support-out", str(out)]
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "2", *tests], cwd=ROOT, check=True)
        return read(out)


def read(path: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """The cells of a file of JSON lines, families and forms in the order of their tables."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {(family, form): (state, reason) for family, form, state, reason in lines}
    return {
        family: {form: found[family, form] for form in FORMS if (family, form) in found}
        for family in ZOO
        if any(key[0] == family for key in found)
    }


def cell(outcomes: Iterable[tuple[str, str]]) -> str:
    """One cell of the matrix: the forms of one column in one family."""
    states = [state for state, _ in outcomes if state != "absent"]
    if not states:
        return "-"
    if len(set(states)) == 1:
        return {"skips": "yes", "partly": "part", "dense": "dense"}[states[0]]
    return f"{states.count('skips')}/{len(states)}"


def matrix(cells: Cells) -> str:
    """The table of ``docs/support.md``: families x columns."""
    lines = [f"| family | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for family, forms in cells.items():
        by_column = ([forms[name] for name in forms if FORMS[name].column == column] for column in COLUMNS)
        lines.append(f"| {title(family)} | {' | '.join(map(cell, by_column))} |")
    return "\n".join(lines)


def title(family: str) -> str:
    """Its name for readers."""
    return str(getattr(ZOO[family], "title", family))


def every_cell(cells: Cells) -> str:
    """All reasons in words, the same ones together, by column and form."""
    parts = ["# Support: every cell that is not wholly skipped, with the reason that the report gives", ""]
    parts += [
        "Written by `python -m benchmarks.support_matrix`. `partly` and `dense` are right by the oracle, too.",
        "",
    ]
    for name, form in FORMS.items():
        here = {family: forms[name] for family, forms in cells.items() if name in forms}
        done = [family for family, (state, _) in here.items() if state == "skips"]
        parts += [f"## {form.column}: {name}", "", f"Skipped as the schedule says: {len(done)} of {len(here)}.", ""]
        groups: dict[tuple[str, str], list[str]] = {}
        for family, outcome in here.items():
            if outcome[0] != "skips":
                groups.setdefault((outcome[0], outcome[1]), []).append(title(family))
        parts += [f"* {state}, {', '.join(names)}: {reason}" for (state, reason), names in groups.items()]
        parts += [""] * bool(groups)
    return "\n".join(parts).rstrip() + "\n"


def publish(cells: Cells) -> None:
    """Write the three files."""
    states = [state for forms in cells.values() for state, _ in forms.values()]
    counts = {state: states.count(state) for state in ("skips", "partly", "dense", "absent")}
    head = {
        **environment("cpu", "float32"),
        "counts": counts,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "support.json").write_text(json.dumps({**head, "cells": cells}, indent=0) + "\n", encoding="utf-8")
    (RESULTS / "SUPPORT.md").write_text(every_cell(cells), encoding="utf-8")
    page = ROOT / "docs" / "support.md"
    text, count = re.subn(
        f"(?<={BEGIN}\n).*?(?={END})",
        lambda _: f"\n{matrix(cells)}\n\n",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"docs/support.md: expected one '{BEGIN}' ... '{END}', found {count}")
    page.write_text(text, encoding="utf-8")
    print(", ".join(f"{count} {state}" for state, count in counts.items()))


def main() -> None:
    """Measure if wanted, then publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables-only", action="store_true", help="from benchmarks/results/checks/support.json")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="for the cells while they run; goes on with what stands there"
    )
    parser.add_argument("--only", default="", metavar="WORD", help="measure these cells again, and keep the others")
    given = parser.parse_args()
    known: dict[str, dict[str, tuple[str, str]]] = {}
    if given.tables_only or given.only:
        known = json.loads((RESULTS / "support.json").read_text(encoding="utf-8"))["cells"]
    if given.tables_only:
        publish(known)
        return
    found = measure(given.keep, given.only)
    publish({family: {**known.get(family, {}), **found.get(family, {})} for family in known or found})


if __name__ == "__main__":
    main()
