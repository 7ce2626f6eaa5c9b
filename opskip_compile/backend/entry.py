"""``torch.compile(model, backend="opskip")``: rewrite the Dynamo graph, then hand it to Inductor.

The rewrite happens before AOTAutograd, so every cache below keys on the rewritten graph. Where a graph break lies
between the merge of the image features and the decoder, the first graph hands the mask on through `MARKS`, and the
second one takes it as one more input.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from opskip_compile import _compat
from opskip_compile.backend import capture, dump, lowering
from opskip_compile.backend.resolve import in_encoder_decoder, resolve_schedule
from opskip_compile.backend.settings import Settings
from opskip_compile.errors import NothingSkippedWarning, OpSkipError
from opskip_compile.passes.analysis.cross_attention import CROSSINGS
from opskip_compile.passes.analysis.dataflow import is_stream
from opskip_compile.passes.analysis.locate import RowSource, row_mask
from opskip_compile.passes.analysis.match import NESTED
from opskip_compile.passes.marks import MARKS, NOT_SKIPPED
from opskip_compile.passes.normalize.cleanup import copy_graph
from opskip_compile.passes.ops.nodes import tensor
from opskip_compile.passes.pipeline import PART_WITHOUT_ROWS, Rewritten, rewrite
from opskip_compile.passes.runtime import NAMES_ROWS
from opskip_compile.report.report import Report

Compiled = Callable[..., Any]
log = logging.getLogger(__name__)


class _Reports:
    """The reports of this process, newest last; bounded. Only the newest few keep the graphs for a diff."""

    def __init__(self, limit: int = 64, with_graphs: int = 8) -> None:
        self._limit, self._with_graphs = limit, with_graphs
        self._items, self._lock, self._count = list[Report](), threading.Lock(), 0

    @property
    def count(self) -> int:
        """How many graphs there were so far."""
        return self._count

    def since(self, count: int) -> list[Report]:
        """The reports of all graphs after the first ``count``."""
        return [report for report in self.all() if report.number > count]

    def add(self, report: Report) -> None:
        with self._lock:
            self._count += 1
            report.number = self._count
            items = [*self._items, report][-self._limit :]
            old = items[: -self._with_graphs]
            # A copy without graphs: whoever holds the report itself keeps them.
            items[: len(old)] = [r if r.make_diff is None else replace(r, make_diff=None) for r in old]
            self._items = items

    def all(self) -> tuple[Report, ...]:
        with self._lock:
            return tuple(self._items)

    def clear(self) -> None:
        with self._lock:
            self._items = []


REPORTS = _Reports()


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
    marked = _marked_position(gm.graph, example_inputs)
    mark = None if marked is None else MARKS.get(example_inputs[marked])
    try:
        result = rewrite(
            gm,
            lambda match, graph: resolve_schedule(settings.schedule, match, graph, settings.model_type),
            strict=settings.strict,
            share_rotary=settings.share_rotary,
            causal=settings.causal and not torch.is_grad_enabled(),
            is_encoder=in_encoder_decoder,
            layer=settings.layer,
            mark_input=None if marked is None else lambda graph: _add_mask_input(graph, marked),
            inputs=example_inputs if mark is None else [*example_inputs, mark.mask],
        )
        if result.graph is not None and settings.onednn and not torch.is_grad_enabled():
            lowering.choose_kernels(gm.graph, result.graph, result.report)
        if result.graph is not None and settings.regions and not torch.is_grad_enabled():
            result.regions = lowering.with_regions(gm, gm.graph, result.graph, result)
    except (OpSkipError, Warning):
        raise
    except Exception as error:
        if settings.strict or settings.dry_run:
            raise
        result = Rewritten(None, _failed(f"a pass failed, please report it: {type(error).__name__}: {error}", gm.graph))
    report, captured = result.report, gm.graph
    report.recompile = _compat.recompile_reason()
    REPORTS.add(report)
    if result.graph is not None:
        gm.graph = result.graph
    _publish(report, settings, captured, gm)
    if settings.dry_run and report.operators:
        return _stopping(report) if marked is None else _taking_up(_stopping(report), marked)
    try:
        return _lower(gm, example_inputs, result, settings, marked)
    except Exception as error:
        if settings.strict or isinstance(error, OpSkipError | Warning) or result.graph is None:
            raise
        gm.graph = captured
        failed = _failed(f"the rewritten graph can't be lowered: {type(error).__name__}: {error}", captured)
        report.reason, report.operators, report.nodes_after = failed.reason, (), failed.nodes_after
        return _finish(gm, example_inputs, settings)


def _failed(reason: str, captured: fx.Graph) -> Report:
    """The report of a graph that is lowered as it was captured, after a warning that names the error."""
    log.warning("%s", reason, exc_info=True)
    warnings.warn(f"opskip: this graph runs dense: {reason}", NothingSkippedWarning, stacklevel=2)
    nodes = len(captured.nodes)
    return Report(nodes_before=nodes, nodes_after=nodes, reason=reason)


def _lower(
    gm: fx.GraphModule, inputs: Sequence[Any], result: Rewritten, settings: Settings, marked: int | None
) -> Compiled:
    source, inputs, report = result.source, list(inputs), result.report
    if report.reason in {*CROSSINGS, PART_WITHOUT_ROWS} or report.reason.startswith(NESTED):
        if settings.schedule is None or settings.schedule.rules or settings.schedule.late:
            text = "opskip: {why}" if report.reason == PART_WITHOUT_ROWS else NOT_SKIPPED
            warnings.warn(text.format(why=report.reason), NothingSkippedWarning, stacklevel=2)
        return _finish(gm, inputs, settings)
    if source is not None and source.kind != "marked_input" and not report.operators:
        return _marking(gm, inputs, settings, source)
    if result.graph is not None:
        if source is not None and source.marked is not None:
            hidden, mask = source.marked
            inputs.append(mask.meta["example_value"])
            position = _position(gm.graph, hidden)
            return _with_mask(_finish_rewritten(gm, inputs, result, settings), position)
    elif report.operators and (report.misses or not report.schedule):
        warnings.warn(NOT_SKIPPED.format(why=report.reason), NothingSkippedWarning, stacklevel=2)
    run = _finish(gm, inputs, settings) if result.graph is None else _finish_rewritten(gm, inputs, result, settings)
    return run if marked is None or not report.operators else _taking_up(run, marked)


def _finish(
    gm: fx.GraphModule, inputs: Sequence[Any], settings: Settings, defaults: Mapping[str, Any] = MappingProxyType({})
) -> Compiled:
    if settings.lower == "eager":
        gm.recompile()
        return gm.forward
    return _compat.inductor(gm, inputs, {**defaults, **settings.inductor})


def _finish_rewritten(gm: fx.GraphModule, inputs: Sequence[Any], result: Rewritten, settings: Settings) -> Compiled:
    """With one region for layers that are alike; without where they can't be lowered."""
    flat = gm.graph
    if result.regions is not None:
        gm.graph = result.regions
        try:
            return _finish(gm, inputs, settings, lowering.config(gm.graph))
        except Exception:
            log.warning("the layers are compiled one by one: their regions can't be lowered", exc_info=True)
            result.report.change_pass("regions", 0)
            gm.graph = flat
            gm.delete_all_unused_submodules()
    return _finish(gm, inputs, settings, lowering.config(gm.graph))


def _taking_up(run: Compiled, position: int) -> Compiled:
    """Call a decoder that has its rows from elsewhere, or skips nothing on purpose: its input's mark is settled."""

    def call(*args: Any) -> Any:
        mark = MARKS.get(args[position])
        if mark is not None:
            mark.used = True
        return run(*args)

    return call


def _with_mask(run: Compiled, position: int) -> Compiled:
    """Call a graph whose last input is the mask of input ``position``; an unmarked input has no visual rows."""

    def call(*args: Any) -> Any:
        hidden = args[position]
        mark = MARKS.get(hidden)
        if mark is not None:
            mark.used = True
            mask = mark.mask.to(hidden.device)
        else:
            mask = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return run(*args, mask)

    return call


def _marking(gm: fx.GraphModule, inputs: Sequence[Any], settings: Settings, source: RowSource) -> Compiled:
    """A graph that merges image features and ends before the decoder: mark the tensor that it hands on."""
    graph = copy_graph(gm.graph)
    output = graph.output_node()
    named = {node.name: node for node in graph.nodes}
    earlier = None if source.marked is None else _position(graph, named[source.marked[0].name])
    masks = tuple(named[mask.name] for mask in source.masks if mask.name in named)  # of this graph alone
    source = RowSource(source.kind, named[source.root.name], masks)
    results = list(output.args[0]) if isinstance(output.args[0], tuple | list) else []
    handed = [n for n in graph.nodes if n is source.root or n.target in NAMES_ROWS]
    position = next((i for i, n in enumerate(results) if n in handed), None)
    if position is None:
        return _finish(gm, inputs, settings)
    mask = row_mask(graph, source)
    output.args = ((*results, mask),)
    gm.graph = graph
    run = _finish(gm, inputs, settings)

    def call(*args: Any) -> Any:
        *outs, rows = run(*args)
        mark = None if earlier is None else MARKS.get(args[earlier])
        if mark is not None:
            mark.used, rows = True, rows | mark.mask.to(rows.device)
        if bool(rows.any()):
            MARKS.put(outs[position], rows, warn_if_unused=True)
        return outs

    return call


def _marked_position(graph: fx.Graph, inputs: Sequence[Any]) -> int | None:
    """The first input that carries a mark."""
    for i, value in enumerate(inputs):
        if MARKS.get(value) is not None:
            return i
    return None


def _add_mask_input(graph: fx.Graph, position: int) -> tuple[fx.Node, fx.Node] | None:
    hidden = list(graph.find_nodes(op="placeholder"))[position]
    if not is_stream(hidden):
        return None
    example = tensor(hidden)
    assert example is not None
    mask = _compat.add_tensor_placeholder(graph, "opskip_visual_mask", _compat.fake_mask_like(example))
    return hidden, mask


def _position(graph: fx.Graph, wanted: fx.Node) -> int:
    return list(graph.find_nodes(op="placeholder")).index(wanted)


class DecoderReached(Exception):
    """Ends the forward of a dry run where the decoder would start; carries its report."""

    def __init__(self, report: Report) -> None:
        super().__init__("opskip: the dry run ends here")
        self.report = report


def _stopping(report: Report) -> Compiled:
    def call(*args: Any) -> Any:
        raise DecoderReached(report)

    return call


def _publish(report: Report, settings: Settings, captured: fx.Graph, gm: fx.GraphModule) -> None:
    """Tell what was done, before it is lowered: a failure of Inductor then has its graphs beside it."""

    def code(graph: fx.Graph) -> str:
        return str(graph.python_code("self").src)

    dump.log_report(report)
    dump.trace_report(report, lambda: code(captured), lambda: code(gm.graph))
    if settings.dump and report.rewritten:
        dump.write_dump(Path(settings.dump), report, code(captured), code(gm.graph))
