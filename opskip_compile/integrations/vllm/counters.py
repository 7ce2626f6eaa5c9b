"""What a server has skipped so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from opskip_compile.integrations.vllm import LOG

EVERY = 10.0  # seconds between two lines in the log


@dataclass
class Counters:
    """Steps and rows. One row of one operator is one piece of work.

    Attributes:
        states: the schedule, a state for each layer.
        with_images, without: steps that skipped, and those that had no visual rows.
        rows, visual: of the steps that skipped.
    """

    states: Sequence[Any]
    with_images: int = 0
    without: int = 0
    rows: int = 0
    visual: int = 0
    _said: float = field(default_factory=time.monotonic)

    def dense(self) -> None:
        """A step without visual rows ran as vLLM has it."""
        self.without += 1

    def skipped(self, rows: int, visual: int) -> None:
        """A step with ``visual`` of ``rows`` rows skipped."""
        self.with_images += 1
        self.rows += rows
        self.visual += visual
        now = time.monotonic()
        if now - self._said > EVERY:
            self._said = now
            LOG.info("opskip: %s", self.summary())

    @property
    def left_out(self) -> int:
        """Rows that operators left out."""
        return self.visual * sum((state.attention is not None) + (state.ffn is not None) for state in self.states)

    def summary(self) -> str:
        """One line."""
        share = self.left_out / max(1, self.rows * 2 * len(self.states))
        return (
            f"{self.with_images} steps with images left out {self.left_out} rows of operators ({share:.1%} of theirs); "
            f"{self.without} steps without images"
        )
