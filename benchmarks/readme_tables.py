"""Write the tables of figures from ``benchmarks/results`` into README and docs, each between two comments that name it.

python -m benchmarks.readme_tables [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> Any:
    """The figures in one file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def prefill(file: str) -> str:
    """One decoder, every contender."""
    (case,) = read(file)["cases"]
    layers = case["layers"]
    return table(
        ("", "FLOPs cut", "ideal", "to Inductor (from - to)", "realised", "same kernels", "to eager", "peak memory"),
        (
            (
                named(row["name"], layers),
                f"{row['flops_cut']:.1%}",
                f"{row['ideal']:.2f}x",
                f"{row['measured']:.2f}x ({row['spread'][0]:.2f} - {row['spread'][1]:.2f})",
                f"{row['realised']:.0%}",
                f"{row['realised_alike']:.0%}" if "realised_alike" in row else "",
                f"{eager(case) / row['milliseconds']:.2f}x",
                f"{row['peak_to_inductor']:.2f}x",
            )
            for row in case["results"]
            if row["name"] != "Inductor"
        ),
    )


def mixed_levels() -> str:
    """A batch whose prompts take different levels."""
    found = read("mixed_levels")
    names = ("one list for all", "filled up")
    return table(
        ("FFNs take the kept rows of a batch", "to Inductor (from - to)", "FLOPs: ideal", "peak memory"),
        (
            (
                name,
                f"{found[name]['to_inductor']:.2f}x ({found[name]['spread'][0]:.2f} - {found[name]['spread'][1]:.2f})",
                f"{found['ideal']:.2f}x",
                f"{found[name]['peak_to_inductor']:.2f}x",
            )
            for name in names
        ),
    )


def vllm_prefill() -> str:
    """The decoder that skips in vLLM against vLLM's own."""
    found = read("vllm_prefill")["found"]
    return table(
        ("schedule", "FLOPs: ideal", "measured", "of the ideal"),
        (
            (
                f"`{row['schedule']}`",
                f"{row['ideal']:.2f}x",
                f"{row['speedup']:.2f}x ({row['spread'][0]:.2f} - {row['spread'][1]:.2f})",
                f"{row['speedup'] / row['ideal']:.0%}",
            )
            for row in found
        ),
    )


def same_kernels() -> str:
    """A few decoders of real widths against the dense decoder that has its linear layers in oneDNN, too."""

    def row(file: str, name: str) -> tuple[str, ...]:
        (case,) = read(file)["cases"]
        (result,) = (each for each in case["results"] if each["name"] == name)
        return (
            f"{case['model']}, {case['layers']} of {case['full_layers']} layers",
            f"{case['visual']:,}",
            named(name, case["layers"] if case["layers"] < case["full_layers"] else None),
            f"{result['flops_cut']:.1%}",
            f"{result['ideal']:.2f}x",
            f"{result['realised_alike'] * result['ideal']:.2f}x",
        )

    header = ("decoder", "visual rows", "what is left out", "FLOPs cut", "ideal", "same kernels")
    return table(header, (row(*each) for each in FRONT))


FRONT = (
    ("prefill_cpu_4b_36", "qwen3-vl-8b/20"),
    ("prefill_cpu_4b_36", "qwen3-vl-8b/28"),
    ("prefill_cpu_8b_4096", "late:0.33"),
    ("prefill_cpu_llava", "llava-1.5-7b/32"),
    ("prefill_cpu_llava", "FastV-like, layer 1"),
)


def widths() -> str:
    """Speed-up and realised share over the real widths and numbers of rows."""
    cases = [case for name in WIDTHS for case in read(name)["cases"]]
    names = [row["name"] for row in cases[0]["results"] if row["kind"] == "schedule"]

    def cell(case: Any, name: str) -> str:
        found = [row for row in case["results"] if row["name"] == name]
        if not found:
            return ""
        row = found[0]
        shares = [f"{row[key]:.0%}" for key in ("realised", "realised_alike") if key in row and row["kind"] != "dense"]
        return f"{row['measured']:.2f}x" + (f" ({', '.join(shares)})" if shares else "")

    return table(
        ("decoder, visual rows", *(named(name, None) for name in names), "dense in oneDNN", "eager"),
        (
            (
                f"{case['model']}, {case['layers']} layers, {case['visual']:,}",
                *(cell(case, name) for name in (*names, "Inductor, oneDNN", "eager")),
            )
            for case in cases
        ),
    )


WIDTHS = tuple(f"prefill_cpu_{case}" for case in ("8b", "4b_36", "2b", "others", "256", "4096", "8b_4096", "16384"))


def profile() -> str:
    """What the time of one call goes to, at the largest width."""
    (case,) = read("prefill_cpu_8b")["cases"]
    kinds = list(case["results"][0]["seconds_by_kind"])
    (whole,) = (sum(row["seconds_by_kind"].values()) for row in case["results"] if row["name"] == "Inductor")

    def cell(seconds: float) -> str:
        return f"{seconds * 1e3:,.0f} ms ({seconds / whole:.1%})"

    return table(
        ("", *("matrix products" if kind == "products" else kind for kind in kinds), "all"),
        (
            (
                "plain Inductor, dense" if row["name"] == "Inductor" else named(row["name"], case["layers"]),
                *(cell(row["seconds_by_kind"][kind]) for kind in kinds),
                cell(sum(row["seconds_by_kind"].values())),
            )
            for row in case["results"]
        ),
    )


def compile_time() -> str:
    """Parts of the first call."""
    found = read("compile_cpu")["results"]
    parts = list(found[0]["parts"])
    return table(
        ("layers, caches", "", *parts, "all", "to dense", "without the probe", "kernels"),
        (
            (
                f"{row['layers']}, {row['cache']}",
                row["contender"] if row["contender"] == "dense" else f"`{row['contender']}`",
                *(f"{row['parts'][part]:.2f}" for part in parts),
                f"{row['seconds']:.1f} s",
                f"{row['to_dense']:.2f}x",
                f"{row['to_dense_without_probe']:.2f}x",
                str(row["kernels"]),
            )
            for row in found
        ),
    )


def passes() -> str:
    """Passes and matchers against depth."""
    found = read("passes_cpu")["results"]
    matchers = list(found[0]["matchers"])
    return table(
        (
            "layers",
            "nodes",
            "to the compiler",
            "all passes",
            "a layer",
            *(f"find operators: {name}" for name in matchers),
        ),
        (
            (
                str(row["layers"]),
                f"{row['nodes']:,}",
                f"{row['nodes_after']:,}",
                f"{row['milliseconds']:.0f} ms",
                f"{row['milliseconds'] / row['layers']:.1f} ms",
                *(f"{each['milliseconds']:.0f} ms ({each['found']})" for each in row["matchers"].values()),
            )
            for row in found
        ),
    )


def calibration() -> str:
    """Accuracy of every way to choose, by cut."""
    found = read("calibration_cpu")["by_cut"]
    cuts = list(dict.fromkeys(row["asked"] for row in found))
    names = list(dict.fromkeys(row["name"] for row in found))

    def cell(name: str, cut: float) -> str:
        row = next(row for row in found if (row["name"], row["asked"]) == (name, cut))
        lowest = f", lowest {row['lowest']:.2%}" if row["lowest"] < row["highest"] else ""
        return f"{row['accuracy']:.2%}{lowest} ({row['flops_cut']:.1%})"

    header = ("", *(f"at least {cut:.1%} fewer FLOPs" for cut in cuts))
    return table(header, ((f"{name}", *(cell(name, cut) for cut in cuts)) for name in names))


def calibration_samples() -> str:
    """The calibrated schedule by the number of samples."""
    return table(
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
            for row in read("calibration_cpu")["by_samples"]["results"]
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
    found = [row for name in names for row in read(name)["outcomes"]]
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

    return table(
        ("", *(f"asked for {cut:.1%}" for cut in cuts)),
        ([METHODS[name], *(cell(rows.get(cut)) for cut in cuts)] for name, rows in by_method.items()),
    )


def signals() -> str:
    """What keeping a quarter of the rows leaves of the divergence of skipping, by what chooses them."""
    models = read("signals")["models"]
    names = {"qwen3_vl": "Qwen3-VL", "llava": "LLaVA", "internvl": "InternVL"}
    first = next(iter(models.values()))["left_of_skipping"]
    return table(
        ("rows are chosen by", *(names[name] for name in names if name in models)),
        (
            (signal, *(f"{models[name]['left_of_skipping'][signal]:.0%}" for name in names if name in models))
            for signal in first
        ),
    )


def releases() -> str:
    """The suite under every combination of releases."""
    rows = read("versions")["combinations"].values()
    return table(
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
    totals = read("transformers_suite")["totals"]
    return table(("", *totals), ((what, *(f"{run[what]:,}" for run in totals.values())) for what in totals["plain"]))


def eager(case: Any) -> float:
    """Milliseconds of eager transformers."""
    return next(row["milliseconds"] for row in case["results"] if row["name"] == "eager")


def named(name: str, layers: int | None) -> str:
    """A contender as the pages call it."""
    known = {
        "attend:all": "all FFN skipped",
        "transform:all": "all attention skipped",
        "silent:all": "all silent",
        "silent:0": "one silent layer",
        "none": "none",
        "eager": "eager transformers",
        "Inductor, oneDNN": "Inductor, dense, linear layers in oneDNN",
    }
    if name in known:
        return known[name]
    if "/" in name or name.startswith("shortv-"):
        return f"preset `{name}`" + (f", thinned to {layers} layers" if layers else "")
    return f"`{name}`" if ":" in name else name.split(",")[0] + " token dropping"


RESULTS_PAGE: dict[str, Callable[[], str]] = {
    "prefill": lambda: prefill("prefill_cpu"),
    "peers": lambda: prefill("prefill_cpu_llava"),
    "widths": widths,
    "profile": profile,
    "shares": lambda: prefill("prefill_cpu_shares"),
    "shares, 8B": lambda: prefill("prefill_cpu_shares_8b"),
    "mixed levels": mixed_levels,
    "signals": signals,
    "compile": compile_time,
    "passes": passes,
    "calibration": calibration,
    "calibration samples": calibration_samples,
    "evaluation": lambda: evaluation("eval_demo"),
    "ten tasks, Qwen3-VL": lambda: evaluation("vqa_qwen3_vl"),
    "levels, Qwen3-VL": lambda: evaluation("vqa_levels_qwen3_vl", "vqa_dropping_qwen3_vl"),
    "levels, LLaVA": lambda: evaluation("vqa_levels_llava", "vqa_dropping_llava"),
    "levels, InternVL": lambda: evaluation("vqa_levels_internvl", "vqa_dropping_internvl"),
    "ten tasks, LLaVA": lambda: evaluation("vqa_llava"),
    "ten tasks, InternVL": lambda: evaluation("vqa_internvl"),
}


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"same kernels": same_kernels},
    "docs/results.md": RESULTS_PAGE,
    "docs/serving.md": {"vllm prefill": vllm_prefill},
    "docs/support.md": {"releases": releases, "transformers' own tests": transformers_suite},
}


def filled(page: str, text: str) -> str:
    """``text`` of ``page`` with each of its tables as the figures have it now.

    Raises:
        ValueError: a table of the page has no place in the text.
    """
    for name, make in PAGES[page].items():
        place = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end of table -->)", re.DOTALL)
        found = place.findall(text)
        if len(found) != 1:
            raise ValueError(f"{page}: expected one table named {name}, found {len(found)}")
        text = place.sub("".join((r"\1", make().replace("\\", r"\\"), r"\n\2")), text)
    return text


def write() -> None:
    """Write every table into its page."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        (ROOT / page).write_text(filled(page, text), encoding="utf-8")


def main() -> None:
    """Write the tables, or say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if not given.check:
        write()
        return
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    if stale := [page for page, text in texts.items() if filled(page, text) != text]:
        sys.exit(f"{', '.join(stale)}: tables that are not those of benchmarks/results")


if __name__ == "__main__":
    main()
