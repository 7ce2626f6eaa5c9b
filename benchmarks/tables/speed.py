"""Tables of times: prefill, compiling, passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.tables import figures


def prefill(file: str) -> str:
    """One decoder, every contender."""
    (case,) = figures.read(file)["cases"]
    layers = case["layers"]
    return figures.table(
        ("", "FLOPs cut", "ideal", "to the fastest dense run", "to Inductor (from - to)", "to eager", "peak memory"),
        (
            (
                figures.named(row["name"], layers),
                f"{row['flops_cut']:.1%}",
                f"{row['ideal']:.2f}x",
                of_ideal(case, row),
                figures.times(row["measured"], row["spread"]),
                f"{eager(case) / row['milliseconds']:.2f}x",
                f"{row['peak_to_inductor']:.2f}x",
            )
            for row in case["results"]
        ),
    )


def to_fastest(case: Any, row: Any) -> float:
    """The speed-up against the fastest dense run of the case: the median ratio, or where an older file has no such
    figure, the ratio of the medians."""
    fastest = min((each for each in case["results"] if each["kind"] == "dense"), key=lambda each: each["milliseconds"])
    return float(row.get("to_fastest_dense", fastest["milliseconds"] / row["milliseconds"]))


def of_ideal(case: Any, row: Any) -> str:
    """The same with the share of the ideal that it is, for what skips."""
    ratio = to_fastest(case, row)
    return f"{ratio:.2f}x" + (f" ({ratio / row['ideal']:.0%})" if row["kind"] != "dense" else "")


def mixed_levels() -> str:
    """A batch whose prompts take different levels."""
    found = figures.read("prefill/mixed_levels")
    names = ("one list for all", "filled up")
    return figures.table(
        ("FFNs take the kept rows of a batch", "to Inductor (from - to)", "FLOPs: ideal", "peak memory"),
        (
            (
                name,
                figures.times(found[name]["to_inductor"], found[name]["spread"]),
                f"{found['ideal']:.2f}x",
                f"{found[name]['peak_to_inductor']:.2f}x",
            )
            for name in names
        ),
    )


def vllm_prefill(name: str = "vllm/vllm_prefill") -> str:
    """The decoder that skips in vLLM against vLLM's own."""
    found = figures.read(name)["found"]
    return figures.table(
        ("schedule", "FLOPs: ideal", "vLLM's kernels alone", "measured", "of the ideal", "of the kernels"),
        (
            (
                f"`{row['schedule']}`",
                f"{row['ideal']:.2f}x",
                f"{row['kernels']:.2f}x",
                figures.times(row["speedup"], row["spread"]),
                f"{row['speedup'] / row['ideal']:.0%}",
                f"{row['speedup'] / row['kernels']:.0%}",
            )
            for row in found
        ),
    )


def serving() -> str:
    """Two servers of vLLM under load, one of which skips."""
    found = figures.read("vllm/serving")["found"]
    measures = ("first_token_ms", "requests_per_s", "between_ms")

    def cells(row: dict[str, Any]) -> Iterator[str]:
        for name in measures:
            median, *spread = row["better"][name]
            digits = 2 if name == "requests_per_s" else 0 if name == "first_token_ms" else 1
            before, after = (f"{row[server][name]:,.{digits}f}" for server in ("dense", "skipping"))
            yield f"{before} → {after}, {figures.times(median, spread)}"

    header = ("requests at a time", "of text alone", "ms to the first token", "requests a second", "ms between tokens")
    return figures.table(header, ((str(row["concurrency"]), f"{row['text']:.0%}", *cells(row)) for row in found))


def row_counts() -> str:
    """What rounding the number of kept rows up costs, against sizes that the graph finds out."""
    rows = figures.read("compile/row_counts")["found"]
    return figures.table(
        ("schedule", "number of kept rows", "rows", "FLOPs: ideal", "to found by the graph"),
        (
            (
                f"`{row['schedule']}`",
                row["name"],
                f"{row['kept']:,}",
                f"{row['ideal']:.2f}x",
                figures.times(row["ratio"], row["spread"]),
            )
            for row in rows
            if row["name"] != "found by the graph"
        ),
    )


def vllm_traffic() -> str:
    """What random traffic showed, by what was skipped."""
    names = {
        "vllm/vllm_traffic_prefixes": "shared prefixes",
        "vllm/vllm_traffic_through": "no shared prefixes",
        "vllm/vllm_traffic_shares": "no shared prefixes, whole prompts",
    }

    def row(file: str, what: str) -> tuple[str, ...]:
        found = figures.read(file)
        counts = found["counts"]
        other = counts["other tokens than the dense model"] / counts["compared with the dense model"]
        return (
            f"`{found['schedule']}`",
            what,
            f"{found['minutes']:.0f}",
            f"{counts['checked']:,}",
            f"{counts['rows checked']:,}",
            str(counts.get("lost their blocks", 0)),
            f"{other:.0%}",
            f"{found['largest_error']:.0e}",
            str(len(found["ties"])),
            str(len(found["wrong"])),
        )

    header = ("schedule", "", "minutes", "answers", "rows", "lost their blocks", "other tokens than dense")
    rows = (row(file, what) for file, what in names.items())
    return figures.table((*header, "largest error", "ties", "wrong"), rows)


def widths() -> str:
    """Speed-up and realised share over the real widths and numbers of rows."""
    cases = [case for name in WIDTHS for case in figures.read(name)["cases"]]
    names = [row["name"] for row in cases[0]["results"] if row["kind"] == "schedule"]

    def cell(case: Any, name: str) -> str:
        found = [row for row in case["results"] if row["name"] == name]
        if not found:
            return ""
        return of_ideal(case, found[0])

    return figures.table(
        (
            "decoder, visual rows",
            *(figures.named(name, None) for name in names),
            *map(figures.named, DENSE, [None] * 3),
        ),
        (
            (
                f"{case['model']}, {case['layers']} layers, {case['visual']:,}",
                *(cell(case, name) for name in (*names, *DENSE)),
            )
            for case in cases
        ),
    )


DENSE = ("Inductor, oneDNN", "Inductor", "eager")
WIDTHS = tuple(
    f"prefill/prefill_cpu_{case}" for case in ("8b", "4b_36", "2b", "others", "256", "4096", "8b_4096", "16384")
)


def profile(file: str) -> str:
    """What the time of one call goes to."""
    (case,) = figures.read(file)["cases"]
    kinds = list(case["results"][0]["seconds_by_kind"])
    (whole,) = (sum(row["seconds_by_kind"].values()) for row in case["results"] if row["name"] == "Inductor")

    def cell(seconds: float) -> str:
        return f"{seconds * 1e3:,.0f} ms ({seconds / whole:.1%})"

    return figures.table(
        ("", *("matrix products" if kind == "products" else kind for kind in kinds), "all"),
        (
            (
                figures.named(row["name"], case["layers"]),
                *(cell(row["seconds_by_kind"][kind]) for kind in kinds),
                cell(sum(row["seconds_by_kind"].values())),
            )
            for row in case["results"]
        ),
    )


def compile_time() -> str:
    """Parts of the first call."""
    found = figures.read("compile/compile_cpu")["results"]
    parts = list(found[0]["parts"])
    return figures.table(
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
    found = figures.read("compile/passes_cpu")["results"]
    matchers = list(found[0]["matchers"])
    return figures.table(
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


def eager(case: Any) -> float:
    """Milliseconds of eager transformers."""
    return next(row["milliseconds"] for row in case["results"] if row["name"] == "eager")


def level_compile() -> str:
    """Compile time of schedules that keep shares, and of levels, beside whole operators."""
    found = figures.read("compile/level_compile")["found"]
    header = ("layers", "schedule", "cold", "to dense", "to `silent`", "warm", "kernels")
    whole = {row["layers"]: row["opskip_cold"] for row in found if row["schedule"] == "silent"}
    rows = (
        (
            str(row["layers"]),
            row["schedule"],
            f"{row['opskip_cold']:.1f} s",
            f"{row['opskip_cold'] / row['dense_cold']:.2f}x",
            f"{row['opskip_cold'] / whole[row['layers']]:.2f}x",
            f"{row['opskip_warm']:.1f} s",
            f"{row['opskip_cold_kernels']} of {row['dense_cold_kernels']}",
        )
        for row in found
    )
    return figures.table(header, rows)
