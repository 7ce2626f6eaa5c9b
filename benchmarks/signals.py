"""What tells the critical rows: operators that keep a quarter of their visual rows, chosen by one signal or another.

python -m benchmarks.signals [--model qwen3_vl] [--prompts 10] [--keep 0.25] [--work FOLDER]

For each operator of the first half of the layers, alone on top of a second half that is silent: the divergence of the
answers (mean KL(dense || skipped) in nats, calibration prompts of the suite in `benchmarks/vqa`) with the operator
skipped, and with a share of its rows kept. Random rows are the control of every signal.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.vqa.evaluate import MODELS, RESULTS, calibration_prompts, load_trained, remembering, tower_of
from opskip_compile.calibration.divergence_meter import DivergenceMeter
from opskip_compile.calibration.journal import Journal
from opskip_compile.calibration.operator_sets import Skipped, Step, skipping
from opskip_compile.calibration.row_scores import RowScores
from opskip_compile.evaluation.dropping import diverse
from opskip_compile.output.environment import environment
from opskip_compile.output.progress import progress
from opskip_compile.passes.scores import spread_scores
from opskip_compile.schedule.left_out import LeftOut
from opskip_compile.schedule.rules import OPERATORS
from opskip_compile.schedule.validation import write_json


class _LastLayer(RowScores):
    """The attention of the last layer only."""

    def see(self, *args: Any, **named: Any) -> None:
        before = self.scores
        super().see(*args, **named)
        self.scores = spread_scores(self.visual) + self.scores - before


class _ByValue(RowScores):
    """Each layer's attention times the norm of the row's value, the mean over the heads."""

    def see(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **named: Any) -> None:
        before = self.scores
        super().see(query, key, value, *args, **named)
        self.scores = before + (self.scores - before) * value.float().norm(dim=-1).mean(1)


class _Diverse(RowScores):
    """Of twice as many rows with the highest scores those whose keys are least alike."""

    keys: Tensor | None = None

    def see(self, query: Tensor, key: Tensor, *args: Any, **named: Any) -> None:
        super().see(query, key, *args, **named)
        self.keys = key.float().transpose(1, 2).flatten(2)

    def without_critical(self, left_out: Tensor, kind: str, rows: LeftOut) -> Tensor:
        more = super().without_critical(left_out, kind, LeftOut(keep=min(2 * rows.keep, 1.0)))
        if self.keys is None or not len(self.after) + (kind == "ffn"):
            return super().without_critical(left_out, kind, rows)
        result = left_out.clone()
        for element, keys in enumerate(self.keys):
            places = (left_out[element] & ~more[element]).nonzero().flatten()
            count = rows.critical(int(left_out[element].sum()))
            result[element, places[diverse(keys[places], count)]] = False
        return result


class _Spread(RowScores):
    """Evenly over the image, whatever the text says."""

    def see(self, *args: Any, **named: Any) -> None:
        return


class _Random(RowScores):
    """Drawn anew for every layer."""

    def begin(self, layer: int, visual: Tensor | None, written_from: int | None) -> None:
        super().begin(layer, visual, written_from)
        drawn = torch.rand(self.visual.shape, generator=torch.Generator().manual_seed(layer))
        self.scores = self.before = drawn.to(self.visual.device)

    def see(self, *args: Any, **named: Any) -> None:
        return


SIGNALS: dict[str, type[RowScores]] = {
    "attention, all layers so far": RowScores,
    "attention, last layer": _LastLayer,
    "attention times norm of value": _ByValue,
    "attention, then diverse keys": _Diverse,
    "spread over the image": _Spread,
    "random": _Random,
}


def study(name: str, per_task: int, keep: float, work: Path, models: Path = MODELS) -> dict[str, Any]:
    """Divergences by operator and signal, and the geometric mean over the operators of what a signal leaves of the
    divergence of skipping."""
    model, encoder = load_trained(name, models)
    with progress(Console(stderr=True)) as step, remembering(tower_of(model)):
        samples = calibration_prompts(model, encoder, work, per_task, 16, step)
        samples.check(step)
        journal = Journal(None, {})
        samples.answer(journal, step)
        items = range(len(samples.items))

        def measure(watch: type[RowScores], sets: Sequence[Skipped]) -> list[float]:
            meter = DivergenceMeter(model, samples, Journal(None, {}), step, kept_bytes=0, watch=watch)
            meter.doing, meter.reuse = f"{name}: {watch.__name__}", False  # a signal may be more than scores
            return [measured.mean for measured in meter.measure(sets, items)]

        layers = len(model.get_decoder().layers)
        late = skipping((layer, kind) for layer in range(layers // 2, layers) for kind in OPERATORS)
        ops = [(layer, kind) for layer in range(layers // 2) for kind in OPERATORS]
        base, *skipped = measure(RowScores, [late, *(late | {Step(*op)} for op in ops)])
        kept = {signal: measure(watch, [late | {Step(*op, keep)} for op in ops]) for signal, watch in SIGNALS.items()}
    names = [f"{layer}.{kind}" for layer, kind in ops]
    return {
        "prompts": samples.count,
        "keep": keep,
        "base": base,
        "operators": {
            op: {"skipped": alone, **{signal: values[i] for signal, values in kept.items()}}
            for i, (op, alone) in enumerate(zip(names, skipped, strict=True))
        },
        "left_of_skipping": {
            signal: math.exp(statistics.fmean(_log_ratio(v, s) for v, s in zip(values, skipped, strict=True)))
            for signal, values in kept.items()
        },
    }


def _log_ratio(value: float, of: float) -> float:
    return math.log(max(value, 1e-9) / max(of, 1e-9))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="default: all that are trained")
    parser.add_argument("--prompts", type=int, default=10, help="calibration prompts of each task")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--work", type=Path, default=Path("vqa_evaluation"), help="folder for data")
    parser.add_argument("--out", type=Path, default=RESULTS.parent / "calibration" / "signals.json")
    given = parser.parse_args(arguments)
    names = given.model or sorted(path.name for path in MODELS.iterdir() if path.is_dir())
    found = {name: study(name, given.prompts, given.keep, given.work) for name in names}
    write_json({"environment": environment("cpu", "float32"), "models": found}, given.out)
    for name, each in found.items():
        print(name, {signal: round(share, 3) for signal, share in each["left_of_skipping"].items()})


if __name__ == "__main__":
    main()
