"""What every table needs: the figures of a file, markdown, and how contenders and ranges are called."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> Any:
    """The figures in one file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def times(ratio: float, spread: Iterable[float]) -> str:
    """A speed-up and the lowest and highest of its rounds."""
    low, high = spread
    return f"{ratio:.2f}x ({low:.2f} - {high:.2f})"


def named(name: str, layers: int | None) -> str:
    """A contender as the pages call it."""
    known = {
        "attend:all": "all FFN skipped",
        "transform:all": "all attention skipped",
        "silent:all": "all silent",
        "silent:0": "one silent layer",
        "none": "none",
        "eager": "eager transformers",
        "Inductor": "plain Inductor, dense",
        "Inductor, oneDNN": "Inductor, dense, linear layers in oneDNN",
    }
    if name in known:
        return known[name]
    if "/" in name or name.startswith("shortv-"):
        return f"preset `{name}`" + (f", thinned to {layers} layers" if layers else "")
    return f"`{name}`" if ":" in name else name.split(",")[0] + " token dropping"
