"""The table of the combinations, as figures and for readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.versions.environments import COMBINATIONS, ROOT, Combination
from benchmarks.versions.runs import Outcome

RESULTS = ROOT / "benchmarks" / "results" / "checks"


def publish(
    combination: Combination, releases: Mapping[str, str], outcome: Outcome, state: str, results: Path = RESULTS
) -> None:
    """Put one combination into the table; the others stay as they are.

    Args:
        releases: what was installed.
        state: of the code that was tested.
    """
    path = results / "versions.json"
    table = json.loads(path.read_text(encoding="utf-8"))["combinations"] if path.exists() else {}
    table[combination.name] = {**releases, **asdict(outcome), "code": state}
    table = {known.name: table[known.name] for known in COMBINATIONS if known.name in table}
    figures = {"command": "python -m benchmarks.versions", "combinations": table}
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (results / "VERSIONS.md").write_text(markdown(table), encoding="utf-8")


def markdown(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, then every failure, and every reason for which a test was skipped."""
    lines = [
        "# The suite under every supported release",
        "",
        "Written by `python -m benchmarks.versions` (`make test-versions`): all tests, in an environment for each row.",
        "",
        "| Python | torch | transformers | passed | failed | skipped | minutes |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for row in table.values():
        counts = row["passed"], len(row["failed"]), sum(row["skipped"].values()), round(row["seconds"] / 60)
        cells = [row["python"], row["torch"], row["transformers"], *(f"{count:,}" for count in counts)]
        lines.append(f"| {' | '.join(cells)} |")
    if len({row["code"] for row in table.values()}) > 1:
        lines += ["", "The rows are not all of the same state of the code."]
    if notes := [f"* {name}: {row['note']}" for name, row in table.items() if "note" in row]:
        lines += ["", "## How a row came about, where it was not one run of this command", "", *notes]
    for name, row in table.items():
        if row["failed"]:
            lines += ["", f"## Failed: {name}", "", *(f"* {test}" for test in row["failed"])]
    reasons = sorted({reason for row in table.values() for reason in row["skipped"]})
    if reasons:
        lines += ["", "## Skipped", ""]
    for reason in reasons:
        counts = {name: row["skipped"].get(reason, 0) for name, row in table.items()}
        if len(set(counts.values())) == 1:
            where = f"{next(iter(counts.values()))} in each"
        else:
            where = ", ".join(f"{count} ({name})" for name, count in counts.items() if count)
        lines.append(f"* {reason}: {where}")
    return "\n".join(lines) + "\n"
