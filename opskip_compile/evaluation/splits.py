"""How much of a cut operators save where tokens are pruned as well: tried on calibration prompts, never on the test.

Each split saves as many FLOPs in all. The one whose answers diverge least from those of the dense model with all of its
tokens is taken.
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile.attachment.decoder import decoder_of
from opskip_compile.calibration.batches import Batch
from opskip_compile.calibration.divergence_meter import by_element, divergence_of
from opskip_compile.calibration.journal import Journal
from opskip_compile.calibration.row_scores import RowScores
from opskip_compile.calibration.samples import Samples
from opskip_compile.errors import OpSkipError
from opskip_compile.evaluation.dropping import leaving_before_decoder
from opskip_compile.evaluation.pruning import pruning_tokens
from opskip_compile.evaluation.runs import EvaluationRun, Split
from opskip_compile.models.oracle import oracle
from opskip_compile.output.progress import Step


def best_split(
    model: nn.Module, samples: Samples, runs: Sequence[EvaluationRun], journal: Journal, step: Step
) -> EvaluationRun:
    """The run whose answers diverge least from the dense model's, with what was measured of all of them.

    Args:
        model: dense and eager.
        samples: checked and answered.
        runs: each with a schedule and with tokens that are pruned; at least one.
        journal: what is known already, and where new measurements go.
        step: called with what is done now, steps done, and steps in all.
    """
    missing = {i: [run for run in runs if journal.get(run.spec, i) is None] for i in range(len(samples.items))}

    def measured_of(i: int) -> Iterator[tuple[str, Any]]:
        batch = samples.batch(i)
        dense, embedded = _dense(model, batch, samples.modalities)
        for run in missing[i]:
            other = _pruned(model, batch, embedded, run, samples.modalities)
            yield run.spec, _divergences(batch, dense, other)

    journal.share(
        [i for i, some in missing.items() if some],
        measured_of,
        lambda i: samples.items[i].names,
        lambda done, size: step(f"{runs[0].name}: trying splits", done, size),
    )
    measured = [[each for i in range(len(samples.items)) for each in journal.get(run.spec, i)] for run in runs]
    splits = tuple(
        Split(run.spec, run.cut, *(statistics.fmean(values) for values in zip(*each, strict=True)))
        for run, each in zip(runs, measured, strict=True)
    )
    least = min(range(len(runs)), key=lambda i: splits[i].divergence)
    return replace(runs[least], splits=splits)


def _divergences(batch: Batch, dense: Tensor, other: Tensor) -> list[list[float]]:
    """Of every element: divergence, the mean over its answer rows, and 1 where all of them agree."""
    rows = by_element(torch.stack(divergence_of(dense, other), 1), batch.answers)
    return [[float(part[:, 0].mean()), float(part[:, 1].amin())] for part in rows]


def _dense(model: nn.Module, batch: Batch, modalities: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Logits of the answer rows, and what enters the decoder."""
    decoder, entered = decoder_of(model, modalities), []
    if decoder is None:
        raise OpSkipError(f"pruning: {type(model).__name__} has no text decoder of its own")

    def entering(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        entered.append(named["inputs_embeds"])

    handle = decoder.register_forward_pre_hook(entering, with_kwargs=True)
    try:
        return _logits(model, batch), entered[0]
    finally:
        handle.remove()


def _pruned(
    model: nn.Module, batch: Batch, embedded: Tensor, run: EvaluationRun, modalities: tuple[str, ...]
) -> Tensor:
    """Logits of the answer rows with a run's tokens pruned and its operators skipped, by the oracle's definition."""
    assert run.schedule is not None and run.dropping is not None
    kept = batch.visual & ~leaving_before_decoder(run.dropping, batch.visual, batch.inputs["input_ids"], embedded)
    watch = RowScores(kept, batch.prompt)
    with pruning_tokens(model, run.dropping, modalities), oracle(model, run.schedule, kept, watch=watch):
        return _logits(model, batch)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """``(answer rows, vocabulary)``."""
    inputs, keep = dict(batch.inputs), batch.answers.shape[1]
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        keep = inputs["logits_to_keep"] = batch.keep
    with torch.no_grad():
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[batch.answers[:, -keep:]]
