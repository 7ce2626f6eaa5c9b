"""Train a model of this suite: all runs of its configuration file, each from the one before.

python -m benchmarks.vqa.recipe --config qwen3_vl --work RUN --out FOLDER [--device cuda] [any option of train.py]

A run is a set of options of `train.py` under `runs`, with two keys more: `layers`, the depth of the decoder in this
run, and `model`, the trained model that the first run starts from. Run N works in `RUN/N` and exports to `RUN/N/model`,
the last one to FOLDER. The command goes on where it was interrupted. Options of `train.py` that are given go to every
run, in the place of those of the file.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.vqa import architectures, train
from benchmarks.vqa.architectures import Kit

MODELS = Path(__file__).parent / "models"


def arguments(run: dict[str, Any]) -> list[str]:
    """The options of `train.py` that a run of a configuration file stands for."""
    found = []
    for name, value in run.items():
        flag = "--" + name.replace("_", "-")
        if name == "share":
            found += [part for task, number in value.items() for part in (flag, f"{task}={number}")]
        elif value is True:
            found.append(flag)
        elif name not in ("layers", "model"):
            found += [flag, str(value)]
    return found


def deep(kit: Kit, layers: int) -> Kit:
    """The same architecture with another number of decoder layers."""
    text = {**kit.settings["text_config"], "num_hidden_layers": layers}
    return dataclasses.replace(kit, settings={**kit.settings, "text_config": text})


def runs(kit: Kit, config: str, work: Path, out: Path, more: Sequence[str]) -> list[tuple[Kit, argparse.Namespace]]:
    """Every run in its order, with its options; the last one exports to `out`.

    Raises:
        SystemExit: an option that `train.py` does not know, before anything is trained.
    """
    found: list[tuple[Kit, argparse.Namespace]] = []
    for number, run in enumerate(kit.settings["runs"], 1):
        folder = work / str(number)
        start = work / str(number - 1) / "model" if number > 1 else MODELS / run["model"] if "model" in run else None
        here = ["--config", config, "--work", str(folder), "--out", str(folder / "model")]
        given = train.parse([*arguments(run), *more, *here, *(["--start", str(start)] if start else [])])
        found.append((deep(kit, run.get("layers", kit.settings["text_config"]["num_hidden_layers"])), given))
    found[-1][1].out = out
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="qwen3_vl", help="a file of configs/, without .json")
    parser.add_argument("--work", type=Path, default=Path("vqa_recipe"), help="folder of the runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    known, more = parser.parse_known_args(given)
    for kit, options in runs(architectures.load(known.config), known.config, known.work, known.out, more):
        torch.set_num_threads(options.threads)
        torch.compiler.reset()
        print(f"run in {options.work}: {options.steps} steps", flush=True)
        train.train(kit, options)


if __name__ == "__main__":
    main()
