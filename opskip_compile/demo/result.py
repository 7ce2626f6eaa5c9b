"""What the demo measured, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opskip_compile.demo.timed_models import OPSKIP, Times
from opskip_compile.report.report import Report
from opskip_compile.schedule.flops import FlopsReport
from opskip_compile.schedule.schedule import Schedule


@dataclass(frozen=True)
class Example:
    """One question about one image, its answer, and the answers of the dense and of the skipping model."""

    image: Path
    question: str
    answer: str
    dense: str
    skipped: str


@dataclass(frozen=True)
class Answers:
    """Test questions, answered by both models.

    Attributes:
        questions: how many.
        dense, skipped: share of right answers; ``agreement``: share of equal answers.
        oracle_error: largest difference of a logit from the oracle's in one batch, as a share of the largest
            logit.
    """

    questions: int
    dense: float
    skipped: float
    agreement: float
    oracle_error: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        schedule: what was skipped, ``origin`` where it was read.
        report: what the compiler did; ``graphs`` is how often it compiled a decoder.
        flops: of one prompt, padded as it was run.
        baseline: name of the dense contender that ratios refer to.
        times: one entry for each contender, for ``batch`` prompts at once.
    """

    model: str
    parameters: int
    schedule: Schedule
    origin: str
    report: Report
    graphs: int
    flops: FlopsReport
    batch: int
    threads: int
    baseline: str
    times: tuple[Times, ...]
    answers: Answers
    examples: tuple[Example, ...]
    seconds: float

    @property
    def speedup(self) -> float:
        """Median decoder time of the baseline by opskip's."""
        return next(t.decoder_ratio for t in self.times if t.name == OPSKIP)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        flops = self.flops.to_dict()
        return {
            "model": self.model,
            "parameters": self.parameters,
            "schedule": {"spec": self.schedule.to_spec(), "origin": self.origin, **self.schedule.to_dict()},
            "report": self.report.to_dict(),
            "layer_states": list(self.report.layer_states()),
            "skipped_operators": list(self.report.skipped),
            "remaining": dict(self.report.remaining()),
            "graphs": self.graphs,
            "flops": {k: v for k, v in flops.items() if k != "operators"},
            "batch": self.batch,
            "threads": self.threads,
            "baseline": self.baseline,
            "times": [asdict(item) for item in self.times],
            "speedup": self.speedup,
            "answers": asdict(self.answers),
            "examples": [{**asdict(item), "image": str(item.image)} for item in self.examples],
            "seconds": self.seconds,
        }
