"""`calibrate`: from a model and some prompts with images to a schedule and the evidence for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from opskip_compile.api import decompiled
from opskip_compile.calibration import costs as costing
from opskip_compile.calibration import processes
from opskip_compile.calibration.budget import Budget
from opskip_compile.calibration.costs import LatencyCosts
from opskip_compile.calibration.files import FileSamples
from opskip_compile.calibration.fingerprint import fingerprint, versions
from opskip_compile.calibration.journal import Journal
from opskip_compile.calibration.meter import KEPT_BYTES, Meter
from opskip_compile.calibration.operators import Skipped
from opskip_compile.calibration.options import Options
from opskip_compile.calibration.result import CalibrationResult
from opskip_compile.calibration.samples import GivenSamples, Samples
from opskip_compile.calibration.stages import Stages
from opskip_compile.errors import OptionError
from opskip_compile.models.prompts import Encoder
from opskip_compile.output.progress import Step
from opskip_compile.schedule.schedule import Rows


def calibrate(
    model: nn.Module,
    samples: Sequence[Mapping[str, Any]] | str | os.PathLike[str] | Samples,
    budget: Budget | float | str = 0.337,
    *,
    processor: Any = None,
    method: str = "probe",
    level: str = "operator",
    search: str = "joint",
    rows: Rows = "visual",
    holdout: float = 0.25,
    seed: int = 0,
    batch: int = 1,
    answer_tokens: int = 16,
    refresh: int = 8,
    controls: bool = True,
    stability: bool = True,
    whole_front: bool = True,
    resume: str | os.PathLike[str] | None = None,
    kept_bytes: int = KEPT_BYTES,
    step: Step = lambda what, done, total: None,
) -> CalibrationResult:
    """Find the schedule of a model: which operators may leave its visual rows out, by what the answer can observe.

    Nothing is trained and no label is needed: what counts is how far the skipped model's answer rows are from the dense
    model's. The model has to be one of transformers whose config names its image token; it stays as it is.

    Args:
        model: the model, on the device and in the dtype to calibrate in.
        samples: processor outputs, one mapping for each prompt or batch of prompts padded on the left. With ``labels``
            (token ids of the answer, -100 elsewhere) the inputs end with their answer; without, the dense model's
            greedy answer is put behind them. Or the path of a JSONL file with ``image`` (or ``images``), ``prompt`` and
            optionally ``answer`` on each line; or `Samples`.
        budget: what `Budget.of` takes: a share of the prefill FLOPs to save, FLOPs or milliseconds that it may take, or
            the divergence to stay below.
        processor: of a JSONL file: a processor of transformers, or an `Encoder`.
        method: first opinion on the operators, one of ``scores.METHODS``: ``probe``, ``first_order``, ``fisher`` or the
            control ``update_norm``.
        level: choose ``"operator"`` by operator, or whole ``"layer"`` s.
        search: ``"joint"`` measures sets as they grow; ``"scores"`` goes by the first opinion alone.
        rows: the row set that skipped operators leave out.
        holdout: share of the items that nothing is chosen by and on which the result is measured.
        seed: of the split, of random directions and of the random controls.
        batch: prompts to a forward pass, of a JSONL file.
        answer_tokens: of a greedy answer, at most.
        refresh: operators that are measured again before each step of the search.
        controls: also choose by whole layers, at random (10 times) and the last layers, to compare with.
        stability: also search on two halves of the samples.
        whole_front: go on beyond the budget until everything is skipped.
        resume: a file to keep measurements in. A calibration that was interrupted, or one with another budget or method
            on the same samples, goes on with what is in it.
        kept_bytes: memory for recorded forward passes; beyond it they are run again for each pass over the samples.
        step: called with what is done now, steps done, and steps in all.

    Returns:
        The schedule with its evidence. Under ``torch.distributed`` the processes share the samples, and every one of
        them returns the same.

    Raises:
        OptionError: a bad option, or a budget that can't be met. OpSkipError: a bad sample (named), or a model that
        can't be calibrated. Either comes before long work where it can be known
        then.
    """
    started = time.perf_counter()
    plan = Options(method, level, search, rows, holdout, seed, refresh, controls, stability, whole_front)
    limit = Budget.of(budget)
    with decompiled(model), evaluating(model), torch.no_grad():
        found = samples_of(model, samples, processor, plan.rows, batch, answer_tokens)
        found.check(step)
        found.split(plan.holdout, plan.seed)
        step("asking the compiler", 0, 0)
        costs, candidates = costing.flops_costs(model, found, costing.compiled_report(model, found))
        if not limit.is_latency:
            limit.check(costs, candidates)
        about = {
            "model": fingerprint(model),
            "data": found.digest,
            "rows": found.rows,
            "answer_tokens": found.answer_tokens,
            **versions(),
        }
        journal = Journal(resume, about, processes.place()[0])
        try:
            found.answer(journal, step)
            meter = Meter(model, found, journal, step, kept_bytes)
            prices = _latency(meter, found, candidates, journal) if limit.is_latency else costs
            limit.check(prices, candidates)
            return Stages(meter, found, plan, limit, costs, prices, candidates, about).run(started)
        finally:
            journal.close()


def _latency(meter: Meter, samples: Samples, candidates: Skipped, journal: Journal) -> LatencyCosts:
    """The table of milliseconds, measured once for a journal."""
    table = journal.get("milliseconds", 0)
    if table is None:
        table = dict(costing.latency_table(meter.model, samples.batch(0), candidates, samples.rows, step=meter.step))
        table = processes.of_first(table)
        journal.put("milliseconds", 0, table)
    return LatencyCosts(table, meter.num_layers, candidates)


def samples_of(model: nn.Module, samples: Any, processor: Any, rows: Rows, batch: int, answer_tokens: int) -> Samples:
    if isinstance(answer_tokens, bool) or not isinstance(answer_tokens, int) or answer_tokens < 1:
        raise OptionError(f"answer_tokens: expected an integer of at least 1, got {answer_tokens!r}")
    if isinstance(samples, Samples):
        if samples.rows != rows:
            raise OptionError(f"rows: the samples were made for {samples.rows!r}, not {rows!r}")
        return samples
    if isinstance(samples, str | os.PathLike):
        if processor is None:
            raise OptionError("processor: needed to read samples from a file")
        return FileSamples(model, samples, Encoder.of(processor), rows, answer_tokens, batch)
    return GivenSamples(model, samples, rows, answer_tokens)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
