"""Tables of test suites: ours under several releases, and transformers' own."""

from __future__ import annotations

from benchmarks.tables import figures


def releases() -> str:
    """The suite under every combination of releases."""
    rows = figures.read("checks/versions")["combinations"].values()
    return figures.table(
        ("Python", "torch", "transformers", "passed", "failed", "skipped"),
        (
            (
                row["python"],
                row["torch"],
                row["transformers"],
                f"{row['passed']:,}",
                str(len(row["failed"])),
                str(sum(row["skipped"].values())),
            )
            for row in rows
        ),
    )


def transformers_suite() -> str:
    """transformers' own tests, plain and compiled."""
    totals = figures.read("checks/transformers_suite")["totals"]
    return figures.table(
        ("", *totals), ((what, *(f"{run[what]:,}" for run in totals.values())) for what in totals["plain"])
    )
