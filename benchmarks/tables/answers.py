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
    "pruned+operators": "tokens pruned, then operators",
    "pruned+operators+keep": "tokens pruned, then operators and their critical rows",
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
    """Of answers that list eight facts: whole answers with the interval, all facts, and some of them by their place."""
    found = figures.read(name)
    rows = []
    for row in found["outcomes"]:
        facts = found["facts"][row["runs"][0]["spec"]]
        low, high = row["accuracy_interval"]
        places = (facts[0], facts[len(facts) // 2 - 1], facts[-1])
        cells = (f"{cell:.1%}" for cell in (statistics.fmean(facts), *places))
        method, asked = METHODS.get(row["method"], row["method"]), row["asked"]
        right = f"{row['accuracy']:.1%} ({low:.1%} - {high:.1%})"
        rows.append((method, "" if asked is None else f"{asked:.1%}", f"{row['flops_cut']:.1%}", right, *cells))
    middle = "the fourth" if len(facts) == 8 else "the eighth"
    header = ("", "asked for", "FLOPs cut", "whole answer right", "facts right", "the first", middle, "the last")
    return figures.table(header, sorted(rows, key=lambda row: (row[1] != "", row[1])))


def combined(*names: str) -> str:
    """Pruned tokens, skipped operators and both at equal FLOPs: retained share with its interval, by cut and model."""
    found = {_MODELS[name.rsplit("combined_", 1)[1]]: figures.read(name)["outcomes"] for name in names}
    rows = {(model, row["method"], row["asked"]): row for model, each in found.items() for row in each if row["asked"]}
    methods = list(dict.fromkeys(method for _, method, _ in rows))
    cuts = sorted({cut for _, _, cut in rows})

    def cell(row: Any) -> str:
        if row is None:
            return ""
        low, high = row["retained_interval"]
        return f"{row['retained']:.1%} ({low:.1%} - {high:.1%}), {row['flops_cut']:.1%}"

    lines = [
        (f"{cut:.1%}", METHODS[method], *cells)
        for cut in cuts
        for method in methods
        if any(cells := [cell(rows.get((model, method, cut))) for model in found])
    ]
    return figures.table(("asked for", "", *found), lines)


def many_turns(name: str) -> str:
    """Three questions on the cache of one image: what each retains, and the two later ones together."""

    def share(turn: Any) -> str:
        low, high = turn["retained_interval"]
        return f"{turn['retained']:.1%} ({low:.1%} - {high:.1%})"

    def line(row: Any) -> tuple[str, ...]:
        asked = "" if row["asked"] is None else f"{row['asked']:.1%}"
        shares = (*(share(turn) for turn in row["turns"]), share(row["later"]))
        return (METHODS.get(row["method"], row["method"]), asked, f"{row['flops_cut']:.1%}", *shares)

    found = figures.read(name)["outcomes"]
    header = ("", "asked for", "FLOPs cut", "first question", "second", "third", "second and third")
    dense, *others = found
    right = ", ".join(f"{turn['accuracy']:.1%}" for turn in dense["turns"])
    rows = [line(row) for row in others]
    return figures.table(header, [("dense: " + right + " right", "", "0.0%", *["100 %"] * 4), *rows])


def documents(name: str) -> str:
    """What answers about a document retain where its rows are left out from some layer on, and where they leave."""
    found = figures.read(name)["results"]
    families = list(dict.fromkeys(row["family"] for row in found if row["from_layer"] is not None))
    layers = sorted({row["from_layer"] for row in found if row["from_layer"] is not None}, reverse=True)

    def cell(family: str, layer: int) -> str:
        row = next(each for each in found if (each["family"], each["from_layer"]) == (family, layer))
        low, high = row["retained_interval"]
        return f"{row['retained']:.1%} ({low:.1%} - {high:.1%}), {row['flops_cut']:.0%}"

    titles = {"FFN": "FFNs", "attention": "attentions", "both": "both", "dropped": "the rows leave (VTW-like)"}
    header = ("from layer", *(titles[family] for family in families))
    return figures.table(header, ((str(layer), *(cell(family, layer) for family in families)) for layer in layers))


_MODELS = {"qwen3_vl": "Qwen3-VL", "llava": "LLaVA", "internvl": "InternVL"}


def signals() -> str:
    """What keeping a quarter of the rows leaves of the divergence of skipping, by what chooses them."""
    models = figures.read("calibration/signals")["models"]
    first = next(iter(models.values()))["left_of_skipping"]
    return figures.table(
        ("rows are chosen by", *(_MODELS[name] for name in _MODELS if name in models)),
        (
            (signal, *(f"{models[name]['left_of_skipping'][signal]:.0%}" for name in _MODELS if name in models))
            for signal in first
        ),
    )
