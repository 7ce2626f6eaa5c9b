"""What a prefill costs with a set of operators skipped, in milliseconds on this device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile import _compat
from opskip_compile.calibration.batches import Batch
from opskip_compile.calibration.costs import Costs
from opskip_compile.calibration.operator_sets import Skipped, as_schedule, kept_shares
from opskip_compile.calibration.replay import Replay
from opskip_compile.output.progress import Step
from opskip_compile.passes.runtime import mark_visual
from opskip_compile.schedule.left_out import LeftOut, Rows
from opskip_compile.schedule.rules import SKIPS


@dataclass(frozen=True)
class LatencyCosts(Costs):
    """Milliseconds of the compiled decoder, from a table of its layer states.

    Attributes:
        milliseconds: of the decoder with every layer in one state: ``full``, ``attend``, ``transform``, ``silent``, and
            the latter with each share, such as ``silent@keep=0.25``.
        num_layers: of the decoder.
        candidates: steps that the compiler can take; others count as full.
    """

    milliseconds: Mapping[str, float]
    num_layers: int
    candidates: Skipped
    unit: str = "ms"

    def of(self, skipped: Skipped) -> float:
        """The mean of what the layers would take if all were like each of them.

        A layer whose operators keep different shares saves what each of the two saves alone.
        """
        kept = kept_shares(skipped & self.candidates)
        total = 0.0
        for layer in range(self.num_layers):
            shares = {op.kind: keep for op, keep in kept.items() if op.layer == layer}
            if len(set(shares.values())) > 1:
                total += sum(self._of({kind: keep}) for kind, keep in shares.items()) - self.milliseconds["full"]
            else:
                total += self._of(shares)
        return total / self.num_layers

    def _of(self, shares: Mapping[str, float]) -> float:
        return self.milliseconds[state_name(frozenset(shares), next(iter(shares.values()), 0.0))]


def state_name(kinds: frozenset[str], keep: float) -> str:
    """A row of the table: all layers with these operators skipped, but for a share."""
    state = next((state for state, skips in SKIPS.items() if frozenset(skips) == kinds), "full")
    return state + LeftOut(keep=keep).suffix


def latency_table(
    model: nn.Module,
    batch: Batch,
    candidates: Skipped,
    rows: Rows = "visual",
    lower: str = "inductor",
    rounds: int = 5,
    step: Step = lambda what, done, total: None,
) -> dict[str, float]:
    """Milliseconds of the compiled decoder on one batch with all its layers in each state of `LatencyCosts`.

    The states are timed in turn; each figure is the median of the rounds.
    """
    replay = Replay(model, batch, rows)
    runs: dict[str, Callable[[], Any]] = {}
    shares = sorted({candidate.keep for candidate in candidates})
    states = [((), 0.0), *((kinds, keep) for keep in shares for kinds in SKIPS.values())]
    for kinds, keep in states:
        state = state_name(frozenset(kinds), keep)
        step(f"compiling: every layer {state}", len(runs), len(states))
        skipped = frozenset(each for each in candidates if each.kind in kinds and each.keep >= keep)
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
