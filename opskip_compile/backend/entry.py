"""``torch.compile(model, backend="opskip")``: rewrite the Dynamo graph, then hand it to Inductor.

The rewrite happens before AOTAutograd, so every cache below keys on the rewritten graph. Where a graph break lies
between the merge of the image features and the decoder, the first graph hands the mask on through `MARKS`, and the
second one takes it as one more input.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from opskip_compile import _compat
from opskip_compile.backend import agreement, capture, dump, handoff, images, lowering
from opskip_compile.backend.advice import ALONE, not_skipped
from opskip_compile.backend.decode_only import say_decode_only
from opskip_compile.backend.reports import REPORTS
from opskip_compile.backend.resolve import asked_modalities, in_encoder_decoder, in_text_model, resolve_schedule
from opskip_compile.backend.row_tokens import InputTokens, row_tokens, saying, with_modalities
from opskip_compile.backend.settings import Settings
from opskip_compile.errors import NothingSkippedWarning, OpSkipError, RewriteError
from opskip_compile.passes.analysis.merges import RowTokens
from opskip_compile.passes.marks import MARKS
from opskip_compile.passes.pipeline import Rewritten, rewrite
from opskip_compile.passes.refusal import Why
from opskip_compile.passes.state import Options, PassReport
from opskip_compile.report.build import failed_report, make_report
from opskip_compile.report.report import Report

PAD_ROWS = (
    "pad_rows has no effect on this graph: a graph break lies between the embeddings and the layers, so that it finds "
    "the number of kept rows itself"
)
Compiled = Callable[..., Any]
log = logging.getLogger(__name__)


def opskip(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """The backend that ``torch.compile`` calls with each captured graph.

    Args:
        gm: the graph that Dynamo captured.
        example_inputs: its inputs.
        mode: an Inductor mode.
        options: see `Settings`.

    Raises:
        OptionError, ScheduleError: bad options.
        RewriteError: under ``strict``, an operator of the schedule has to stay full.
    """
    settings = Settings.parse(options, mode)
    capture.reinstall()
    captured = gm.graph
    told = agreement.Told() if settings.dry_run else agreement.Told.of(captured, example_inputs, not settings.alone)
    try:
        run = _compiled(gm, example_inputs, settings, told)
    except Exception as error:  # the others hear of it, also if Dynamo is only asked for another capture
        told.fails(error)
        raise
    if told.is_agreed():
        return run
    if settings.strict:
        raise RewriteError(agreement.DIFFERENT)
    gm.graph = captured
    failed = _failed(agreement.DIFFERENT, captured)
    _carry_out(REPORTS.all()[-1].number, failed)
    return told.meeting(_finish(gm, example_inputs, settings), example_inputs, agreement.DENSE)


def _compiled(gm: fx.GraphModule, example_inputs: Sequence[Any], settings: Settings, told: agreement.Told) -> Compiled:
    """The graph rewritten and lowered; ``told`` learns what it exchanges with other processes."""
    captured = gm.graph
    marked = handoff.marked_position(captured, example_inputs)
    mark = None if marked is None else MARKS.get(example_inputs[marked])
    result: Rewritten | None = None
    input_tokens = InputTokens(example_inputs)
    codes: list[tuple[str, str]] = []
    try:
        tokens = row_tokens(captured, settings.modalities or asked_modalities(settings.schedule), input_tokens)
        result = rewrite(
            gm,
            _asked(settings, marked, example_inputs, tokens),
            observe=dump.collecting(codes) if settings.dump else None,
        )
        inputs = example_inputs if mark is None else [*example_inputs, mark.mask]
        report = make_report(result, inputs, _compat.recompile_reason())
        report = replace(report, prompt=with_modalities(report.prompt, tokens))
    except (OpSkipError, Warning):
        raise
    except Exception as error:
        if settings.strict or settings.dry_run or _compat.steers_dynamo(error):
            raise
        result = None
        report = _failed(f"a pass failed, please report it: {type(error).__name__}: {error}", captured)
    if report.rewritten and settings.pad_rows and report.prompt is not None and not report.prompt.rooms:
        log.warning(PAD_ROWS)
    report = REPORTS.add(report)
    if not settings.in_place and not report.operators and _asks(settings):
        say_decode_only(opskip)
    if result is not None and result.graph is not None:
        gm.graph = result.graph
    _publish(report, settings, captured, gm, codes)
    if settings.dry_run and report.operators:
        return _stopping(report) if marked is None else handoff.taking_up(_stopping(report), marked)
    if result is None:
        return told.meeting(_finish(gm, example_inputs, settings), example_inputs)
    without_rows = result.state.refusal is not None and result.state.refusal.why in _WITHOUT_ROWS
    told.rewritten(result.graph, result.state.groups, without_rows)
    try:
        run = told.meeting(_lower(gm, example_inputs, result, report, settings, marked), example_inputs)
        dense = partial(fx.GraphModule, gm, captured)
        run = input_tokens.checking(run, lambda: told.meeting(dense(), example_inputs, agreement.DENSE))
        run = saying(run, captured, example_inputs)
        return run if settings.in_place else _with_images(run, captured, report, settings)
    except Exception as error:
        if _compat.steers_dynamo(error):
            REPORTS.remove(report.number)  # the same code is captured again
            raise
        if settings.strict or isinstance(error, OpSkipError | Warning) or result.graph is None:
            raise
        gm.graph = captured
        failed = _failed(f"the rewritten graph can't be lowered: {type(error).__name__}: {error}", captured)
        _carry_out(report.number, failed)
        told.does = agreement.DENSE
        return told.meeting(_finish(gm, example_inputs, settings), example_inputs)


def _carry_out(number: int, failed: Report) -> None:
    """Let the report of a graph say that it is lowered as it was captured."""
    changed = {"refusal": failed.refusal, "operators": (), "nodes_after": failed.nodes_after}
    REPORTS.change(number, lambda report: replace(report, **changed))  # type: ignore[arg-type]


def _asked(settings: Settings, marked: int | None, inputs: Sequence[Any], tokens: RowTokens) -> Options:
    """What the passes are asked for. What changes the last bits, or shares code, is left alone under gradients.

    Nor is the device asked for the form of a mask in code of which CUDA graphs are to be recorded.
    """
    plain, recorded = not torch.is_grad_enabled(), _is_recorded(settings, inputs)
    return Options(
        resolve=lambda match, graph: resolve_schedule(
            settings.schedule, match, graph, settings.model_type, settings.modalities
        ),
        strict=settings.strict,
        share_rotary=settings.share_rotary,
        causal=settings.causal and plain and not recorded,
        onednn=settings.onednn and plain,
        regions=settings.regions and plain,
        is_encoder=in_encoder_decoder,
        is_decoder=None if settings.in_place else in_text_model,
        layer=settings.layer,
        num_layers=settings.num_layers,
        mark_input=None if marked is None else lambda graph: handoff.add_mask_input(graph, marked),
        tokens=tokens,
    )


def _is_recorded(settings: Settings, inputs: Sequence[Any]) -> bool:
    """True if CUDA graphs are asked for, of a graph on a device that has them."""
    on_device = any(isinstance(value, torch.Tensor) and value.device.type != "cpu" for value in inputs)
    return settings.records_cuda_graphs and on_device


def _failed(reason: str, captured: fx.Graph) -> Report:
    """The report of a graph that is lowered as it was captured, after a warning that names the error."""
    log.warning("%s", reason, exc_info=True)
    warnings.warn(f"opskip: this graph runs dense: {reason}", NothingSkippedWarning, stacklevel=2)
    return failed_report(reason, captured)


UNUSED = "no decoder in the graphs after it could be matched, or it was compiled for a prompt without images first"
_WITHOUT_ROWS = frozenset({Why.NO_ROWS, Why.DECODER_WITHOUT_ROWS, Why.PART_WITHOUT_ROWS})
_SAID = frozenset({Why.UNTOLD_ROWS, Why.ENCODER, Why.CROSS_ATTENTION, Why.PART_WITHOUT_ROWS, Why.NESTED, Why.SPREAD})


def _lower(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    result: Rewritten,
    report: Report,
    settings: Settings,
    marked: int | None,
) -> Compiled:
    source, inputs, why = result.state.source, list(inputs), None if report.refusal is None else report.refusal.why
    if why in _SAID:
        if _asks(settings):
            is_part = why is Why.PART_WITHOUT_ROWS
            text = f"opskip: {report.reason}" if is_part else not_skipped(report.reason, why, settings)
            warnings.warn(text, NothingSkippedWarning, stacklevel=2)
        return _finish(gm, inputs, settings)
    if source is not None and source.kind != "marked_input" and not report.operators:
        return handoff.marking(
            gm, source, lambda gm: _finish(gm, inputs, settings), not_skipped(UNUSED, None, settings)
        )
    if result.graph is not None:
        if source is not None and source.marked is not None:
            hidden, mask = source.marked
            inputs.append(mask.meta["example_value"])
            position = handoff.position_of(gm.graph, hidden)
            return handoff.with_mask(_finish_rewritten(gm, inputs, result, report, settings), position)
    elif report.operators and (report.misses or not report.schedule):
        warnings.warn(not_skipped(report.reason, why, settings), NothingSkippedWarning, stacklevel=2)
    if result.graph is None:
        run = _finish(gm, inputs, settings)
    else:
        run = _finish_rewritten(gm, inputs, result, report, settings)
    return run if marked is None or not report.operators else handoff.taking_up(run, marked)


def _with_images(run: Compiled, captured: fx.Graph, report: Report, settings: Settings) -> Compiled:
    """``run``, which notes the pixels that it takes, or settles those that were taken before it."""
    if report.operators:
        return images.settling(run)
    why = None if report.refusal is None else report.refusal.why
    if why is Why.DECODER_WITHOUT_ROWS:
        if not _asks(settings):
            return images.settling(run)
        return images.settling(run, not_skipped(report.reason, None, settings), ALONE)
    return images.noting_pixels(run) if why is Why.NO_ROWS and images.takes_pixels(captured) else run


def _asks(settings: Settings) -> bool:
    """False if the schedule is the one that skips nothing."""
    return settings.schedule is None or not settings.schedule.is_empty


_NOTHING: Mapping[str, Any] = MappingProxyType({})


def _finish(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    settings: Settings,
    defaults: Mapping[str, Any] = _NOTHING,
    required: Mapping[str, Any] = _NOTHING,
) -> Compiled:
    if settings.lower == "eager":
        gm.recompile()
        return gm.forward
    return _compat.inductor(gm, inputs, {**defaults, **settings.inductor, **required})


def _finish_rewritten(
    gm: fx.GraphModule, inputs: Sequence[Any], result: Rewritten, report: Report, settings: Settings
) -> Compiled:
    """With one region for layers that are alike; without where they can't be lowered."""
    flat, required = gm.graph, lowering.required(gm.graph)
    if required and _is_recorded(settings, inputs):
        log.warning(lowering.NOT_RECORDED)
    if result.state.regions is not None:
        gm.graph = result.state.regions
        try:
            return _finish(gm, inputs, settings, lowering.config(gm.graph), required)
        except Exception as error:
            if _compat.steers_dynamo(error):
                raise
            log.warning("the layers are compiled one by one: their regions can't be lowered", exc_info=True)
            REPORTS.change(report.number, lambda report: replace(report, passes=_without_regions(report)))
            gm.graph = flat
            gm.delete_all_unused_submodules()
    return _finish(gm, inputs, settings, lowering.config(gm.graph), required)


def _without_regions(report: Report) -> tuple[PassReport, ...]:
    return tuple(replace(each, changed=0) if each.name == "regions" else each for each in report.passes)


class DecoderReached(Exception):
    """Ends the forward of a dry run where the decoder would start; carries its report."""

    def __init__(self, report: Report) -> None:
        super().__init__("opskip: the dry run ends here")
        self.report = report


def _stopping(report: Report) -> Compiled:
    def call(*args: Any) -> Any:
        raise DecoderReached(report)

    return call


def _publish(
    report: Report, settings: Settings, captured: fx.Graph, gm: fx.GraphModule, codes: Sequence[tuple[str, str]]
) -> None:
    """Tell what was done, before it is lowered: a failure of Inductor then has its graphs beside it."""
    dump.log_report(report)
    dump.trace_report(report, lambda: dump.code_of(captured), lambda: dump.code_of(gm.graph))
    if settings.dump and report.rewritten:
        dump.write_dump(Path(settings.dump), report, dump.code_of(captured), dump.code_of(gm.graph), codes)
