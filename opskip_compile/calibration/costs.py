"""What a prefill costs with a set of operators skipped: in FLOPs of the samples' prompts, or in milliseconds here.

Also which operators count at all: one that the compiler would leave full saves nothing, so it is never chosen.
"""

from __future__ import annotations

import statistics
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile import _compat
from opskip_compile.api import explain
from opskip_compile.calibration.batches import Batch, PromptRows
from opskip_compile.calibration.operator_sets import NOTHING, OperatorId, Skipped, all_operators, as_schedule
from opskip_compile.calibration.replay import Replay
from opskip_compile.calibration.samples import Samples
from opskip_compile.errors import NothingSkippedWarning, OpSkipError
from opskip_compile.output.progress import Step
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.report.report import Report
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.left_out import Rows
from opskip_compile.schedule.schedule import SKIPS, Late, Schedule


class Costs(ABC):
    """Cost of one prefill, dense and with operators skipped."""

    unit: str

    @abstractmethod
    def of(self, skipped: Skipped) -> float:
        """Cost with these skipped."""

    @property
    def dense(self) -> float:
        """Cost with nothing skipped."""
        return self.of(NOTHING)

    def cut(self, skipped: Skipped) -> float:
        """Share of the dense cost that is saved, 0 to 1."""
        return 1 - self.of(skipped) / self.dense

    def saved(self, skipped: Skipped, more: Skipped) -> float:
        """What skipping ``more`` as well saves, as a share of the dense cost."""
        return (self.of(skipped) - self.of(skipped | more)) / self.dense


@dataclass(frozen=True)
class FlopsCosts(Costs):
    """FLOPs of the decoder, the mean over the prompts.

    Attributes:
        full, left: by operator, dense and skipped.
    """

    full: Mapping[OperatorId, float]
    left: Mapping[OperatorId, float]
    unit: str = "FLOPs"

    def of(self, skipped: Skipped) -> float:
        """Additive: FLOPs of one operator do not depend on another."""
        return sum(self.left[op] if op in skipped else count for op, count in self.full.items())

    def layer(self) -> float:
        """Dense FLOPs of one layer, the mean over the layers."""
        return self.dense / max(1, len(self.full) // 2)


@dataclass(frozen=True)
class LatencyCosts(Costs):
    """Milliseconds of the compiled decoder, from a table of the four layer states.

    Attributes:
        milliseconds: of the decoder with every layer in one state (``full``, ``attend``, ``transform``, ``silent``).
        num_layers: of the decoder.
        candidates: operators that can be skipped; the others count as full.
    """

    milliseconds: Mapping[str, float]
    num_layers: int
    candidates: Skipped
    unit: str = "ms"

    def of(self, skipped: Skipped) -> float:
        """The mean of what the layers would take if all were like each of them."""
        skipped = skipped & self.candidates
        states = {frozenset(kinds): state for state, kinds in SKIPS.items()}
        total = 0.0
        for layer in range(self.num_layers):
            kinds = frozenset(op.kind for op in skipped if op.layer == layer)
            total += self.milliseconds[states.get(kinds, "full")]
        return total / self.num_layers


def compiled_report(model: nn.Module, samples: Samples) -> Report:
    """What the compiler makes of the model and its first prompts with every operator skipped.

    Raises:
        OpSkipError: the decoder can't be captured, or nothing in it can be skipped; says why.
    """
    everything = Schedule(late=Late(1.0, samples.rows))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingSkippedWarning)  # it is an error here
            report = explain(model, {**samples.inputs(0), "use_cache": False}, schedule=everything)
    except OpSkipError:
        raise
    except Exception as error:  # the model's own code, or Dynamo in it
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise OpSkipError(f"model: {type(model).__name__} can't be captured: {text}") from error
    if not report.rewritten:
        raise OpSkipError(f"model: the compiler can skip nothing in {type(model).__name__}: {report.reason}")
    return report


def flops_costs(
    model: nn.Module, samples: Samples, report: Report, rows: Rows | None = None
) -> tuple[FlopsCosts, Skipped]:
    """Cost of the prompts, and the operators that the compiler can skip.

    By the formula (DESIGN section 6) where the config gives the sizes and an operator leaves its rows out wholly, else
    as counted in the compiler's two graphs.

    Args:
        samples: checked.
        report: of `compiled_report`.
        rows: the row set that skipped operators leave out; that of the samples if not given. A count in graphs is
            always of that of the samples.
    """
    left_out = rows or samples.rows
    prompts = [prompt for item in samples.items for prompt in item.rows]
    counted = {OperatorId(op.layer, op.kind): op for op in report.operators}
    known = {op: entry for op, entry in counted.items() if entry.flops_before and entry.flops_after is not None}
    candidates = frozenset(op for op, entry in counted.items() if entry.skipped)
    whole = all(not counted[op].remaining for op in candidates)
    try:
        geometry = Geometry.from_config(model) if whole else None
    except OpSkipError:
        geometry = None
    if geometry is None:
        if len(known) < len(counted):
            raise OpSkipError("model: the FLOPs of its operators are not known, neither by its config nor by its graph")
        full = {op: float(entry.flops_before or 0) for op, entry in known.items()}
        left = {op: float(entry.flops_after or 0) for op, entry in known.items()}
        return FlopsCosts(full, left), candidates
    full, left = {}, {}
    for op in all_operators(geometry.num_layers):

        def flops(updated: Callable[[PromptRows], int], of: Geometry = geometry, kind: str = op.kind) -> float:
            return statistics.fmean(
                of.attention(updated(p), p.all) if kind == "attention" else of.ffn(updated(p)) for p in prompts
            )

        full[op] = flops(lambda p: p.all)
        left[op] = flops(lambda p: p.kept(left_out)) if op in candidates else full[op]
    return FlopsCosts(full, left), candidates


def latency_table(
    model: nn.Module,
    batch: Batch,
    candidates: Skipped,
    rows: Rows = "visual",
    lower: str = "inductor",
    rounds: int = 5,
    step: Step = lambda what, done, total: None,
) -> dict[str, float]:
    """Milliseconds of the compiled decoder on one batch with all its layers in each of the four states.

    The states are timed in turn; each figure is the median of the rounds.
    """
    replay = Replay(model, batch, rows)
    runs: dict[str, Callable[[], Any]] = {}
    for state, kinds in {"full": (), **SKIPS}.items():
        step(f"compiling: every layer {state}", len(runs), 1 + len(SKIPS))
        skipped = frozenset(op for op in candidates if op.kind in kinds)
        runs[state] = _compiled(replay, skipped, rows, lower)
        for _ in range(2):  # the first call compiles, the next is no measure yet
            _timed(runs[state])
    seconds: dict[str, list[float]] = {state: [] for state in runs}
    for done in range(rounds):
        step("timing the decoder", done, rounds)
        for state, run in runs.items():
            seconds[state].append(_timed(run))
    return {state: statistics.median(times) * 1e3 for state, times in seconds.items()}


def _compiled(replay: Replay, skipped: Skipped, rows: Rows, lower: str) -> Callable[[], Any]:
    decoder, args, named = replay.decoder_call()
    visual = replay.batch.visual

    def call(hidden: Tensor, **more: Any) -> Any:
        return decoder(*args, **{**more, "inputs_embeds": mark_visual(hidden, visual)})

    options: Any = {"schedule": as_schedule(skipped, rows), "lower": lower}
    compiled = torch.compile(_compat.with_own_code(call), backend="opskip", options=options)
    hidden = named.pop("inputs_embeds")
    return lambda: compiled(hidden, **named)


def _timed(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    on_gpu = torch.cuda.is_available()
    with torch.no_grad():
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
    return time.perf_counter() - start
