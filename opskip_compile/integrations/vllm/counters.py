"""What a server has skipped so far: in its log, and as counters of Prometheus.

A worker of vLLM is a process of its own. Its counters reach ``/metrics`` of the server where the variable
``PROMETHEUS_MULTIPROC_DIR`` names a folder that both write to, as `prometheus_client` has it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from opskip_compile.integrations.vllm import LOG
from opskip_compile.integrations.vllm.runs import Requests
from opskip_compile.schedule.geometry import Geometry

EVERY = 10.0  # seconds between two lines in the log


NO_ROWS = "no visual rows"  # why a step was dense: what else would make it so is an error


@cache
def exported() -> tuple[Any, Any, Any]:
    """Of this process: steps by kind, rows that operators left out, and the FLOPs of them."""
    from prometheus_client import Counter

    steps = Counter("opskip:steps", "Steps of the decoder, by whether they skipped, and why not", ["kind", "reason"])
    rows = Counter("opskip:rows_left_out", "Rows that skipped operators left out")
    return steps, rows, Counter("opskip:flops_saved", "FLOPs of the rows that skipped operators left out")


@dataclass
class Counters:
    """Steps, rows and FLOPs. One row of one operator is one piece of work.

    Attributes:
        states: the schedule, a state for each layer.
        geometry: of the decoder, or None if the formula does not describe it: then FLOPs are not counted.
        counts: False in ranks after the first, which do the same.
        skipping, dense: steps that skipped, and others.
        rows: of the steps that skipped.
        left_out: rows that operators left out in them.
        flops: that they saved (`Geometry`: all rows that a request has so far count as keys).
    """

    states: Sequence[Any]
    geometry: Geometry | None = None
    counts: bool = True
    skipping: int = 0
    dense: int = 0
    rows: int = 0
    left_out: int = 0
    flops: int = 0
    _said: float = field(default_factory=time.monotonic)

    def without(self) -> None:
        """A step without rows to leave out ran as vLLM has it."""
        self.dense += 1
        if self.counts:
            exported()[0].labels("dense", NO_ROWS).inc()

    def skipped(self, rows: int, requests: Requests | None, levels: Sequence[int] = ()) -> None:
        """A step of so many rows skipped those of ``requests``; ``levels``: of the whole prompts among them."""
        left_out, flops = (0, 0) if requests is None else self._work(requests, levels)
        self.skipping += 1
        self.rows += rows
        self.left_out += left_out
        self.flops += flops
        if self.counts:
            steps, rows_left_out, saved = exported()
            steps.labels("skipping", "").inc()
            rows_left_out.inc(left_out)
            saved.inc(flops)
        now = time.monotonic()
        if now - self._said > EVERY:
            self._said = now
            LOG.info("opskip: %s", self.summary())

    def _work(self, requests: Requests, levels: Sequence[int]) -> tuple[int, int]:
        left_out = flops = 0
        level = np.zeros(len(requests.keys), int)
        level[requests.whole] = levels if len(levels) == requests.whole.sum() else 0
        for state in self.states:
            for kind, of in (("attention", state.attention), ("ffn", state.ffn)):
                if of is not None:
                    skipped = requests.left_out[of.rows]
                    if of.chooses:  # of parts of prompts no critical row is known, and none is left out
                        kept = [of.at(int(one)).critical(int(n)) for one, n in zip(level, skipped, strict=True)]
                        skipped = np.where(requests.whole, skipped - np.array(kept, int), 0)
                    rows = int(skipped.sum())
                    left_out += rows
                    if self.geometry is not None and kind == "ffn":
                        flops += self.geometry.ffn(rows)
                    elif self.geometry is not None:
                        flops += self.geometry.queries(rows, int(skipped @ requests.keys))
        return left_out, flops

    def summary(self) -> str:
        """One line."""
        share = self.left_out / max(1, self.rows * 2 * len(self.states))
        return (
            f"{self.skipping} steps with images left out {self.left_out} rows of operators ({share:.1%} of theirs); "
            f"{self.dense} steps without images"
        )
