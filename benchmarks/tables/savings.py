"""The tables of skipping together with quantised weights, and with guessed tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tables import figures

REFUSED = "not on this machine"


def quantised() -> str:
    """A row for each scheme: FLOPs cut by each schedule, the largest error, and what stays full."""
    schemes = figures.read("quantized/quantized")["schemes"]
    schedules = [run["schedule"] for run in schemes["float32"]["runs"]]
    header = (
        "by",
        "what is quantised",
        *(f"`{name}`" for name in schedules),
        "error",
        "each question alone",
        "operators in full, and why",
    )
    return figures.table(header, (_scheme(found, len(schedules)) for found in schemes.values()))


def guessed() -> str:
    """A row for each way to guess: whose prefill skips what, and the share of guesses that is accepted."""
    found = [row for row in figures.read("answers/speculative_qwen3_vl")["found"] if "guessed by" in row]

    def line(row: Mapping[str, Any]) -> tuple[str, ...]:
        low, high = row["interval"]
        who = [name if name in ("dense", "prompt lookup") else f"skipped, {name} of FLOPs" for name in _names(row)]
        return (
            *who,
            str(row["guessed"]),
            f"{row['accepted']:.1%} ({low:.1%} - {high:.1%})",
            f"{row['same answers']:.0%}",
        )

    header = ("guessed by", "checked by", "tokens guessed", "accepted", "answers as without guesses")
    return figures.table(header, map(line, found))


def _names(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["guessed by"], row["checked by"]


def _scheme(found: Mapping[str, Any], schedules: int) -> tuple[str, ...]:
    about = found["package"] or "-", found["what"]
    if "refused" in found:
        return *about, *["-"] * (schedules + 2), f"{REFUSED}: {found['refused']}"
    runs = found["runs"]
    why = "; ".join(dict.fromkeys(reason for run in runs for reason in run["why"]))
    if not any(run["skipped"] for run in runs):
        return *about, *["dense"] * schedules, "-", f"{found['alone']:.0e}", f"all, with a warning: {why}"
    cuts = ("-" if run["flops_cut"] is None else f"{run['flops_cut']:.1%}" for run in runs)
    full, skipped = (sum(run[name] for run in runs) for name in ("in full", "skipped"))
    worst = max(run["error"] for run in runs)
    shown = f"{full} of {skipped}: {why}" if full else "none"
    return *about, *cuts, f"{worst:.0e}", f"{found['alone']:.0e}", shown
