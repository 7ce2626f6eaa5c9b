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

from opskip_compile.integrations.vllm import LOG

EVERY = 10.0  # seconds between two lines in the log


@cache
def exported() -> tuple[Any, Any]:
    """Of this process: steps by kind, and rows that operators left out."""
    from prometheus_client import Counter

    steps = Counter("opskip:steps", "Steps of the decoder, by whether they had visual rows", ["kind"])
    return steps, Counter("opskip:rows_left_out", "Rows that skipped operators left out")


@dataclass
class Counters:
    """Steps and rows. One row of one operator is one piece of work.

    Attributes:
        states: the schedule, a state for each layer.
        counts: False in ranks after the first, which do the same.
        with_images, without: steps that skipped, and those that had no visual rows.
        rows, visual: of the steps that skipped.
    """

    states: Sequence[Any]
    counts: bool = True
    with_images: int = 0
    without: int = 0
    rows: int = 0
    visual: int = 0
    _said: float = field(default_factory=time.monotonic)

    def dense(self) -> None:
        """A step without visual rows ran as vLLM has it."""
        self.without += 1
        if self.counts:
            exported()[0].labels("dense").inc()

    def skipped(self, rows: int, visual: int) -> None:
        """A step with ``visual`` of ``rows`` rows skipped."""
        self.with_images += 1
        self.rows += rows
        self.visual += visual
        if self.counts:
            steps, rows_left_out = exported()
            steps.labels("skipping").inc()
            rows_left_out.inc(visual * self.operators)
        now = time.monotonic()
        if now - self._said > EVERY:
            self._said = now
            LOG.info("opskip: %s", self.summary())

    @property
    def operators(self) -> int:
        """How many operators skip."""
        return sum((state.attention is not None) + (state.ffn is not None) for state in self.states)

    @property
    def left_out(self) -> int:
        """Rows that operators left out."""
        return self.visual * self.operators

    def summary(self) -> str:
        """One line."""
        share = self.left_out / max(1, self.rows * 2 * len(self.states))
        return (
            f"{self.with_images} steps with images left out {self.left_out} rows of operators ({share:.1%} of theirs); "
            f"{self.without} steps without images"
        )
