"""Tables of what answers keep."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.tables import figures


def calibration() -> str:
    """Accuracy of every way to choose, by cut."""
    found = figures.read("calibration/calibration_cpu")["by_cut"]
    cuts = list(dict.fromkeys(row["asked"] for row in found))
    names = list(dict.fromkeys(row["name"] for row in found))

    def cell(name: str, cut: float) -> str:
        row = next(row for row in found if (row["name"], row["asked"]) == (name, cut))
        lowest = f", lowest {row['lowest']:.2%}" if row["lowest"] < row["highest"] else ""
        return f"{row['accuracy']:.2%}{lowest} ({row['flops_cut']:.1%})"

    header = ("", *(f"at least {cut:.1%} fewer FLOPs" for cut in cuts))
    return figures.table(header, ((f"{name}", *(cell(name, cut) for cut in cuts)) for name in names))


def calibration_samples() -> str:
    """The calibrated schedule by the number of samples."""
    return figures.table(
        (
            "samples",
            "schedule",
            "FLOPs cut",
            "test accuracy",
            "held-out KL",
            "operators in both halves",
            "dense prefills a sample",
        ),
        (
            (
                str(row["samples"]),
                f"`{row['schedule']}`",
                f"{row['flops_cut']:.1%}",
                f"{row['accuracy']:.2%}",
                f"{row['heldout_divergence']:.1e}",
                f"{row['halves_overlap']:.0%}" if "halves_overlap" in row else "",
                f"{row['dense_prefills']:.0f}",
            )
            for row in figures.read("calibration/calibration_cpu")["by_samples"]["results"]
        ),
    )


METHODS = {
    "per-prompt": "a level for every prompt, calibrated",
    "operators+keep": "operators and their critical rows, calibrated",
    "operators": "operators, calibrated",
    "dop": "operators from a depth on, DOP-like",
    "layers": "whole layers, calibrated",
    "shortv": "whole layers, ShortV's score",
    "fastv": "token dropping, FastV-like",
    "vtw": "token dropping, VTW-like",
    "divprune": "token pruning before the decoder, DivPrune-like",
    "random-tokens": "random tokens",
    "random": "random operators",
    "late": "the last layers",
}


def evaluation(*names: str) -> str:
    """What a model's answers keep, method by method and cut by cut; in brackets the cut that was reached."""
    found = [row for name in names for row in figures.read(name)["outcomes"]]
    cuts = sorted({row["asked"] for row in found if row["asked"] is not None})
    by_method: dict[str, dict[float, Any]] = {}
    for row in found:
        if row["asked"] is not None:
            by_method.setdefault(row["method"], {})[row["asked"]] = row

    def cell(row: Any) -> str:
        if row is None:
            return ""
        low, high = row["retained_interval"]
        speed = row["speedup"]
        times = "" if speed is None else f", {speed['measured']:.2f}x"
        return f"{row['retained']:.2%} ({low:.1%} - {high:.1%}), {row['flops_cut']:.0%}{times}"

    return figures.table(
        ("", *(f"asked for {cut:.1%}" for cut in cuts)),
        ([METHODS[name], *(cell(rows.get(cut)) for cut in cuts)] for name, rows in by_method.items()),
    )


def long_answers(name: str) -> str:
    """Of answers that list eight facts: whole answers, all facts, and the first and the last of them."""
    found = figures.read(name)
    rows = []
    for row in found["outcomes"]:
        facts = found["facts"][row["runs"][0]["spec"]]
        cells = (row["flops_cut"], row["accuracy"], statistics.fmean(facts), facts[0], facts[-1])
        method = METHODS.get(row["method"], row["method"])
        rows.append((method, "" if row["asked"] is None else f"{row['asked']:.1%}", *(f"{cell:.1%}" for cell in cells)))
    header = ("", "asked for", "FLOPs cut", "whole answer right", "facts right", "the first", "the last")
    return figures.table(header, sorted(rows, key=lambda row: (row[1] != "", row[1])))


def signals() -> str:
    """What keeping a quarter of the rows leaves of the divergence of skipping, by what chooses them."""
    models = figures.read("calibration/signals")["models"]
    names = {"qwen3_vl": "Qwen3-VL", "llava": "LLaVA", "internvl": "InternVL"}
    first = next(iter(models.values()))["left_of_skipping"]
    return figures.table(
        ("rows are chosen by", *(names[name] for name in names if name in models)),
        (
            (signal, *(f"{models[name]['left_of_skipping'][signal]:.0%}" for name in names if name in models))
            for signal in first
        ),
    )
