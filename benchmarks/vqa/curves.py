"""Draw the log of a training run: held-out accuracy of each task against steps, with its blind baseline.

python -m benchmarks.vqa.curves RUN/log.json [RUN2/log.json ...] --out curves.png

Several logs are of runs that each began with the weights of the one before; a dotted line is where one ended.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

BLIND = Path(__file__).resolve().parents[1] / "results" / "answers" / "vqa_blind.json"


def joined(logs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[list[Mapping[str, Any]], list[int]]:
    """The entries of runs one after another, with steps counted through, and the steps at which runs ended."""
    entries: list[Mapping[str, Any]] = []
    ends: list[int] = []
    for log in logs:
        before = ends[-1] if ends else 0
        entries += [{**entry, "step": before + entry["step"]} for entry in log]
        ends.append(entries[-1]["step"])
    return entries, ends[:-1]


def draw(
    log: Sequence[Mapping[str, Any]], ends: Sequence[int], blind: Mapping[str, Mapping[str, float]], path: Path
) -> None:
    """One small panel per check; the dashed line is what the words of the questions alone give away."""
    checks = list(log[-1]["accuracy"])
    figure, panels = pyplot.subplots(3, 4, figsize=(12, 7), sharex=True, sharey=True, squeeze=False)
    for check, axes in zip(checks, panels.flat, strict=False):
        steps = [entry["step"] for entry in log]
        axes.plot(steps, [100 * entry["accuracy"][check] for entry in log], marker="o", markersize=3)
        for end in ends:
            axes.axvline(end, color="gray", ls=":", lw=1)
        if check in blind:
            axes.axhline(100 * max(blind[check]["blind_text"], blind[check]["blind_template"]), color="gray", ls="--")
        axes.set_title(check, fontsize=10)
        axes.set_ylim(-3, 103)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(alpha=0.3)
    losses = panels.flat[len(checks)]
    losses.axis("off")
    figure.supxlabel("training steps")
    figure.supylabel("held-out questions answered right (%)")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+", help="the log.json of each run")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    given = parser.parse_args(arguments)
    log, ends = joined([json.loads(path.read_text(encoding="utf-8"))["log"] for path in given.logs])
    draw(log, ends, json.loads(BLIND.read_text(encoding="utf-8"))["results"], given.out)


if __name__ == "__main__":
    main()
