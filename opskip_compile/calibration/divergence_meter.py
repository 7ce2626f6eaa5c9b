"""Measures sets of skipped operators on samples: how far the answer rows are from the dense model's.

Every measurement is made once, kept by set and item, and written to the journal. Several processes (``torchrun``) share
the items and exchange what they measured, so each of them searches the same way.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from opskip_compile.calibration import processes
from opskip_compile.calibration.batches import Batch
from opskip_compile.calibration.journal import Journal
from opskip_compile.calibration.operator_sets import NOTHING, Skipped, spec_text
from opskip_compile.calibration.replay import AnswerOutputs, Replay
from opskip_compile.calibration.row_scores import RowScores
from opskip_compile.calibration.samples import Samples
from opskip_compile.errors import OpSkipError
from opskip_compile.models.oracle import decoder_layers
from opskip_compile.output.progress import Step

KEPT_BYTES = 1 << 30
Job = Callable[[Replay, int], Any]  # of a recorded item and its number


@dataclass(frozen=True)
class Measured:
    """One set of skipped operators on some samples; each entry belongs to one sample.

    Attributes:
        divergence: KL(dense || skipped) in nats, the mean over the answer rows.
        turned: 1 - cosine of the residual streams behind the last layer, the mean over the answer rows.
        agrees: True if every answer row has the dense model's most likely token: the greedy answer is the same.
    """

    divergence: tuple[float, ...]
    turned: tuple[float, ...]
    agrees: tuple[bool, ...]

    @property
    def mean(self) -> float:
        """The divergence, over the samples."""
        return statistics.fmean(self.divergence)

    @property
    def error(self) -> float:
        """Standard error of `mean`; 0 for one sample."""
        n = len(self.divergence)
        return statistics.stdev(self.divergence) / math.sqrt(n) if n > 1 else 0.0

    @property
    def agreement(self) -> float:
        """Share of samples with the same answer."""
        return statistics.fmean(self.agrees)


class DivergenceMeter:
    """Measures on the items of some `Samples`.

    Args:
        model: dense, in evaluation mode.
        samples: checked and answered.
        journal: what is known already, and where new measurements go.
        step: called with what is done now, items done, items in all.
        kept_bytes: memory for recorded batches; the dense forward of a batch that does not fit is run again for each
            pass over the samples.
        watch: what scores the rows where sets hold operators that keep a share of them.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        journal: Journal,
        step: Step = lambda what, done, total: None,
        kept_bytes: int = KEPT_BYTES,
        watch: type[RowScores] = RowScores,
    ) -> None:
        self.model, self.samples, self.step, self.watch = model, samples, step, watch
        self.num_layers = len(decoder_layers(model))
        self.doing = "measuring"
        self.reuse: bool | None = None
        self.layer_runs = 0
        self._of_others = 0
        self._journal, self._kept_bytes = journal, kept_bytes
        self._replays: dict[int, Replay] = {}

    @property
    def all_layer_runs(self) -> int:
        """Layers times samples that all processes have computed."""
        return self.layer_runs + self._of_others

    def measure(self, sets: Sequence[Skipped], items: Sequence[int], base: Skipped = NOTHING) -> list[Measured]:
        """Every set on every item; ``base`` is a set from which they differ late in the decoder, if there is one.

        Raises:
            OpSkipError: the dense model's logits are not finite; names the sample.
        """

        def job(skipped: Skipped) -> Job:
            return lambda replay, item: _compare(replay, replay.outcome(skipped))

        values = self._run({spec_text(skipped): job(skipped) for skipped in sets}, items, base)
        return [_measured([values[spec_text(skipped), i] for i in items]) for skipped in sets]

    def each(self, key: str, job: Job, items: Sequence[int]) -> list[Any]:
        """What ``job`` makes of every item, as JSON values, in the order of the items; ``key`` names it."""
        values = self._run({key: job}, items, NOTHING)
        return [values[key, i] for i in items]

    def _run(self, jobs: Mapping[str, Job], items: Sequence[int], base: Skipped) -> dict[tuple[str, int], Any]:
        missing = {i: [key for key in jobs if self._journal.get(key, i) is None] for i in items}
        open_items = [i for i in items if missing[i]]

        def measured(i: int) -> Iterator[tuple[str, Any]]:
            replay = self._replay(i)
            before = replay.layer_runs
            if base:
                replay.move(base)
            for key in missing[i]:
                yield key, jobs[key](replay, i)
            self.layer_runs += replay.layer_runs - before

        self._journal.share(
            open_items,
            measured,
            lambda i: self.samples.items[i].names,
            lambda done, size: self.step(self.doing, done, size),
        )
        if open_items:
            self._of_others = sum(processes.from_others(self.layer_runs))
        return {(key, i): self._journal.get(key, i) for key in jobs for i in items}

    def _replay(self, i: int) -> Replay:
        if i in self._replays:
            return self._replays[i]
        batch = self.samples.batch(i)
        replay = Replay(self.model, batch, self.samples.rows, reuse=self.reuse is not False, watch=self.watch)
        if self.reuse is None:
            self.reuse = replay.reuse = replay.reproduces()
        self.layer_runs += replay.layer_runs
        _check_finite(replay, batch)
        if sum(kept.bytes for kept in self._replays.values()) + replay.bytes <= self._kept_bytes:
            self._replays[i] = replay
        return replay


def _compare(replay: Replay, outcome: AnswerOutputs) -> list[list[float]]:
    """For every element: divergence, turn, and whether the answer is the same."""
    return compare(replay.dense, outcome, replay.batch.answers).tolist()


def compare(dense: AnswerOutputs, other: AnswerOutputs, answers: Tensor) -> Tensor:
    """How far two outcomes are apart.

    Args:
        answers: bool ``(batch, sequence)``, the answer rows.

    Returns:
        float64 ``(batch, 3)``: KL(dense || other) in nats and 1 - cosine of the hidden states, both the mean over the
        answer rows; and 1 where the most likely token is the same in all of them, else 0.
    """
    divergence, same = divergence_of(dense.logits, other.logits)
    turned = 1 - cosine_similarity(dense.hidden.double(), other.hidden.double(), dim=-1)
    rows = by_element(torch.stack([divergence, turned, same], -1), answers)
    return torch.stack([torch.cat([part[:, :2].mean(0), part[:, 2:].amin(0)]) for part in rows])


def divergence_of(dense: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of two ``(rows, vocabulary)`` logits KL(dense || other) in nats, and 1 where the most likely token
    is the same, else 0; both float64 ``(rows,)``."""
    p, q = dense.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0), (p.argmax(-1) == q.argmax(-1)).double()


def by_element(values: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """Values of the rows that are True in ``rows``, bool ``(batch, sequence)``, apart for each element."""
    return torch.split(values, rows.sum(1).tolist())


def _measured(items: Sequence[Sequence[Sequence[float]]]) -> Measured:
    elements = [element for item in items for element in item]
    return Measured(
        tuple(element[0] for element in elements),
        tuple(element[1] for element in elements),
        tuple(bool(element[2]) for element in elements),
    )


def _check_finite(replay: Replay, batch: Batch) -> None:
    rows = by_element(torch.isfinite(replay.dense.logits).all(-1), batch.answers)
    for name, element in zip(batch.names, rows, strict=True):
        if not bool(element.all()):
            raise OpSkipError(f"{name}: the dense model's logits are not finite")
