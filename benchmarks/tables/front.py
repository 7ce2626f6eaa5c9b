"""The table of the front page: a few decoders of real widths, and what answers of a trained model retain."""

from __future__ import annotations

from benchmarks.tables import figures
from benchmarks.tables.answers import METHODS
from benchmarks.tables.speed import to_fastest

SPEED = (("prefill/prefill_cpu_4b_36", "qwen3-vl-8b/20"), ("prefill/prefill_cpu_8b_4096", "late:0.33"))
ANSWERS = (
    ("answers/vqa_qwen3_vl", "operators", 0.337),
    ("answers/vqa_levels_qwen3_vl", "per-prompt", 0.5),
    ("answers/vqa_qwen3_vl", "fastv", 0.337),
)
NOT_MEASURED = "-"


def front() -> str:
    """Five rows; what a study has not measured is left open."""
    header = ("model", "what is left out", "FLOPs cut", "ideal", "measured", "answers retained")
    return figures.table(header, [*map(_speed, SPEED), *map(_answers, ANSWERS)])


def _speed(which: tuple[str, str]) -> tuple[str, ...]:
    (case,) = figures.read(which[0])["cases"]
    (row,) = (each for each in case["results"] if each["name"] == which[1])
    return (
        f"{case['model']}, {case['layers']} of {case['full_layers']} layers, {case['visual']:,} visual rows",
        figures.named(which[1], None),
        f"{row['flops_cut']:.1%}",
        f"{row['ideal']:.2f}x",
        f"{to_fastest(case, row):.2f}x",
        f"{NOT_MEASURED} (random weights)",
    )


def _answers(which: tuple[str, str, float]) -> tuple[str, ...]:
    file, method, asked = which
    (row,) = (each for each in figures.read(file)["outcomes"] if (each["method"], each["asked"]) == (method, asked))
    speed, cut = row["speedup"], row["flops_cut"]
    return (
        "Qwen3-VL of 2.1 M weights, trained here",
        METHODS[method],
        f"{cut:.1%}",
        f"{1 / (1 - cut):.2f}x",
        f"{speed['measured']:.2f}x" if speed else NOT_MEASURED,
        f"{row['retained']:.2%}",
    )
