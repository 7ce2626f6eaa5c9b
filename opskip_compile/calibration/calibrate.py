"""`calibrate`: from a model and some prompts with images to a schedule and the evidence for it."""

from __future__ import annotations

import time
from typing import Any

from torch import nn
from typing_extensions import Unpack

from opskip_compile.calibration import costs as costing
from opskip_compile.calibration import latency, processes
from opskip_compile.calibration.budget import Budget
from opskip_compile.calibration.config import CalibrationConfig, CalibrationOptions
from opskip_compile.calibration.divergence_meter import DivergenceMeter
from opskip_compile.calibration.fingerprint import fingerprint, versions
from opskip_compile.calibration.journal import Journal
from opskip_compile.calibration.latency import LatencyCosts
from opskip_compile.calibration.operator_sets import Skipped
from opskip_compile.calibration.option_checks import configured, shared_options
from opskip_compile.calibration.preparation import SampleSource, as_samples, dense
from opskip_compile.calibration.result import CalibrationResult
from opskip_compile.calibration.samples import Samples
from opskip_compile.calibration.stages import Stages
from opskip_compile.output.progress import Step
from opskip_compile.schedule.modalities import VISUAL


def calibrate(
    model: nn.Module,
    samples: SampleSource,
    budget: Budget | float | str | None = None,
    *,
    config: CalibrationConfig | None = None,
    processor: Any = None,
    step: Step = lambda what, done, total: None,
    **options: Unpack[CalibrationOptions],
) -> CalibrationResult:
    """Find the schedule of a model: which operators may leave its visual rows out, by what the answer can observe.

    Nothing is trained and no label is needed: what counts is how far the skipped model's answer rows are from the dense
    model's. The model has to be one of transformers whose config names its image token, or with ``modalities="audio"``
    its audio token; it stays as it is.

    Args:
        model: the model, on the device and in the dtype to calibrate in.
        samples: processor outputs, one mapping for each prompt or batch of prompts padded on the left. With ``labels``
            (token ids of the answer, -100 elsewhere) the inputs end with their answer; without, the dense model's
            greedy answer is put behind them. Or the path of a JSONL file with ``image``, ``images`` or ``audio``,
            ``prompt`` and optionally ``answer`` on each line; or `Samples`.
        budget: what `Budget.of` takes: a share of the prefill FLOPs to save (0.337 if not given), FLOPs or milliseconds
            that it may take, or the divergence to stay below.
        config: how to calibrate; the defaults of `CalibrationConfig` if not given.
        processor: of a JSONL file: a processor of transformers, or an `Encoder`.
        step: called with what is done now, steps done, and steps in all.
        options: fields of `CalibrationConfig` by name, such as ``method="fisher"``. A budget and options that are given
            take the place of the config's.

    Returns:
        The schedule with its evidence. Under ``torch.distributed`` the processes share the samples, and every one of
        them returns the same.

    Raises:
        OptionError: an unknown or bad option, or a budget that can't be met. OpSkipError: a bad sample (named), or a
        model that can't be calibrated. Either comes before long work where it can be known then. Where one process
        fails, all of them raise; a process that ends without a word is an OpSkipError in the others.
    """
    started = time.perf_counter()
    config = configured(CalibrationConfig, config, {**options, **({} if budget is None else {"budget": budget})})
    with processes.Together(), dense(model):
        checked = as_samples(
            model, samples, processor, config.rows, config.batch, config.answer_tokens, config.modalities
        )
        checked.check(step)
        checked.split(config.holdout, config.seed)
        step("asking the compiler", 0, 0)
        flops = costing.flops_costs(model, checked, shares=bool(config.shares), levels=config.levels > 1)
        candidates = flops.candidates(config.shares)
        if not config.target.is_latency:
            config.target.check(flops, candidates)
        about = {
            "model": fingerprint(model),
            "data": checked.digest,
            "rows": checked.rows,
            **({} if checked.modalities == VISUAL else {"modalities": list(checked.modalities)}),
            "answer_tokens": checked.answer_tokens,
            **versions(),
        }
        processes.check_alike({**shared_options(config), **about})
        journal = Journal(config.resume, about, processes.rank_and_world_size()[0])
        try:
            checked.answer(journal, step)
            meter = DivergenceMeter(model, checked, journal, step, config.kept_bytes)
            costs = _latency(meter, checked, candidates, journal) if config.target.is_latency else flops
            config.target.check(costs, candidates)
            return Stages(meter, config, flops, costs, candidates, about).run(started)
        finally:
            journal.close()


def _latency(meter: DivergenceMeter, samples: Samples, candidates: Skipped, journal: Journal) -> LatencyCosts:
    """The table of milliseconds, measured once for a journal."""
    key = " ".join(["milliseconds", *(f"{share:g}" for share in sorted({step.keep for step in candidates}))])
    table = journal.get(key, 0)
    if table is None:
        table = processes.by_first(
            lambda: dict(
                latency.latency_table(meter.model, samples.batch(0), candidates, samples.rows, step=meter.step)
            )
        )
        journal.put(key, 0, table)
    return LatencyCosts(table, meter.num_layers, candidates)
