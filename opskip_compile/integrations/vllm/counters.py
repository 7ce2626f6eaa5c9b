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
from opskip_compile.integrations.vllm.settings import warn_once
from opskip_compile.schedule.geometry import Geometry

EVERY = 10.0  # seconds between two lines in the log
NO_ROWS, IN_PARTS = "no visual rows", "prompts in parts"
"""Why a step was dense: whatever else would make it so is an error."""


PARTS = (
    "a prompt came in parts, of which no critical row can be told: operators with keep shares or levels ran on all of "
    "its rows. --no-enable-chunked-prefill keeps prompts whole, with --max-num-batched-tokens above the longest of them"
)


@cache
def exported() -> tuple[Any, Any, Any, Any]:
    """Of this process: steps by kind, rows that operators left out, the FLOPs of them, and rows of prompts in parts."""
    from prometheus_client import Counter

    steps = Counter("opskip:steps", "Steps of the decoder, by whether they skipped, and why not", ["kind", "reason"])
    rows = Counter("opskip:rows_left_out", "Rows that skipped operators left out")
    flops = Counter("opskip:flops_saved", "FLOPs of the rows that skipped operators left out")
    text = "Rows that operators with keep shares or levels did not leave out: their prompts came in parts"
    return steps, rows, flops, Counter("opskip:rows_in_parts", text)


@dataclass
class Counters:
    """Steps, rows and FLOPs. One row of one operator is one piece of work.

    Attributes:
        states: the schedule, a state for each layer.
        geometry: of the decoder, or None if the formula does not describe it: then FLOPs are not counted.
        counts: False in ranks after the first, which do the same.
        skipping, dense: steps that left rows out, and others.
        rows: of the steps that skipped.
        left_out: rows that operators left out in them.
        in_parts: rows of prompts in parts that operators with keep shares or levels did not leave out.
        flops: that they saved (`Geometry`: all rows that a request has so far count as keys).
    """

    states: Sequence[Any]
    geometry: Geometry | None = None
    counts: bool = True
    skipping: int = 0
    dense: int = 0
    rows: int = 0
    left_out: int = 0
    in_parts: int = 0
    flops: int = 0
    _said: float = field(default_factory=time.monotonic)

    def without(self, reason: str = NO_ROWS) -> None:
        """A step left no row out."""
        self.dense += 1
        if self.counts:
            exported()[0].labels("dense", reason).inc()

    def skipped(self, rows: int, requests: Requests | None, levels: Sequence[int] = ()) -> None:
        """A step of so many rows skipped those of ``requests``; ``levels``: of the whole prompts among them."""
        left_out, in_parts, flops = (0, 0, 0) if requests is None else self._work(requests, levels)
        self.in_parts += in_parts
        if self.counts:
            exported()[3].inc(in_parts)
        if in_parts:
            warn_once(PARTS)
        if in_parts and not left_out:
            self.without(IN_PARTS)
            return
        self.skipping += 1
        self.rows += rows
        self.left_out += left_out
        self.flops += flops
        if self.counts:
            steps, rows_left_out, saved, _ = exported()
            steps.labels("skipping", "").inc()
            rows_left_out.inc(left_out)
            saved.inc(flops)
        now = time.monotonic()
        if now - self._said > EVERY:
            self._said = now
            LOG.info("opskip: %s", self.summary())

    def _work(self, requests: Requests, levels: Sequence[int]) -> tuple[int, int, int]:
        """Rows that operators left out, those that prompts in parts have kept, and the FLOPs of the first."""
        left_out = in_parts = flops = 0
        level = np.zeros(len(requests.keys), int)
        level[requests.whole] = levels if len(levels) == requests.whole.sum() else 0
        for state in self.states:
            for kind, of in (("attention", state.attention), ("ffn", state.ffn)):
                if of is not None:
                    skipped = requests.left_out[of.rows]
                    if of.chooses:
                        kept = [of.at(int(one)).critical(int(n)) for one, n in zip(level, skipped, strict=True)]
                        in_parts += int(skipped[~requests.whole].sum())
                        skipped = np.where(requests.whole, skipped - np.array(kept, int), 0)
                    rows = int(skipped.sum())
                    left_out += rows
                    if self.geometry is not None and kind == "ffn":
                        flops += self.geometry.ffn(rows)
                    elif self.geometry is not None:
                        flops += self.geometry.queries(rows, int(skipped @ requests.keys))
        return left_out, in_parts, flops

    def summary(self) -> str:
        """One line."""
        share = self.left_out / max(1, self.rows * 2 * len(self.states))
        return (
            f"steps that skipped: {self.skipping}, other steps: {self.dense}; left out in the first: "
            f"{self.left_out:,} rows of operators, {share:.1%} of all rows of all attentions and FFNs"
        )
