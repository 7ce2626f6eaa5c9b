"""What a prefill costs with a set of operators skipped, in FLOPs of the samples' prompts.

Also which operators count at all: one that the compiler would leave full saves nothing, so it is never chosen.
"""

from __future__ import annotations

import statistics
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from torch import nn

from opskip_compile.api import explain
from opskip_compile.calibration.batches import PromptRows
from opskip_compile.calibration.operator_sets import (
    NOTHING,
    OperatorId,
    Skipped,
    Step,
    all_operators,
    left_out,
    skipping,
)
from opskip_compile.calibration.samples import Samples
from opskip_compile.errors import NothingSkippedWarning, OpSkipError, OptionError
from opskip_compile.report.report import Report
from opskip_compile.schedule.chooser import BUCKETS, Chooser
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.left_out import PROBES, LeftOut, Rows
from opskip_compile.schedule.rules import Late
from opskip_compile.schedule.schedule import Schedule

_ASKED = 0.5  # a share to ask the compiler with: which one makes no difference


class Costs(ABC):
    """Cost of one prefill, dense and with operators skipped."""

    unit: str

    @abstractmethod
    def of(self, skipped: Skipped) -> float:
        """Cost with these skipped."""

    @property
    def dense(self) -> float:
        """Cost with nothing skipped."""
        return self.of(NOTHING)

    def cut(self, skipped: Skipped) -> float:
        """Share of the dense cost that is saved, 0 to 1."""
        return 1 - self.of(skipped) / self.dense

    def saved(self, skipped: Skipped, more: Skipped) -> float:
        """What skipping ``more`` as well saves, as a share of the dense cost."""
        return (self.of(skipped) - self.of(skipped | more)) / self.dense


@dataclass(frozen=True)
class FlopsCosts(Costs):
    """FLOPs of the decoder, the mean over the prompts.

    Attributes:
        full: by operator, dense.
        left: what is left of an operator that leaves these rows out.
        scores: what the attention of one layer costs more where its text rows are asked which rows are critical, by
            whether it is skipped itself.
        whole, partial: operators that the compiler can skip, and those of which it can keep a share; the others cost
            the same in every set.
        rows: the row set that sets leave out.
        by_formula: counted by `formula_costs`, else in the compiler's graphs.
    """

    full: Mapping[OperatorId, float]
    left: Callable[[OperatorId, LeftOut], float]
    scores: Callable[[bool], float]
    whole: frozenset[OperatorId]
    partial: frozenset[OperatorId] = frozenset()
    rows: Rows = "visual"
    by_formula: bool = False
    unit: str = "FLOPs"
    _known: dict[Skipped, float] = field(default_factory=dict, repr=False, compare=False)

    def of(self, skipped: Skipped) -> float:
        """Operators one by one, and the scores of those that keep a share."""
        if skipped not in self._known:
            self._known[skipped] = self.leaving_out(left_out(skipped, self.rows))
        return self._known[skipped]

    def leaving_out(self, rows: Mapping[OperatorId, LeftOut]) -> float:
        """FLOPs with operators that leave these rows out."""
        return self._counted(self._possible(rows), self._possible(rows))

    def of_levels(self, levels: Sequence[Mapping[OperatorId, LeftOut]]) -> list[float]:
        """FLOPs at each of several levels of one graph: at all of them it scores the rows for every level."""
        union: dict[OperatorId, LeftOut] = {}
        for op in self.full:
            each = [level.get(op) for level in levels]
            shares = tuple(1.0 if rows is None else rows.keep for rows in each)
            named = next((rows for rows in each if rows is not None), None)
            if named is not None:
                union[op] = LeftOut(named.rows, shares[0], () if len(set(shares)) == 1 else shares)
        union = self._possible(union)
        return [self._counted({op: rows for op, rows in level.items() if op in union}, union) for level in levels]

    def _possible(self, rows: Mapping[OperatorId, LeftOut]) -> dict[OperatorId, LeftOut]:
        return {op: each for op, each in rows.items() if op in (self.partial if each.chooses else self.whole)}

    def _counted(self, rows: Mapping[OperatorId, LeftOut], chosen: Mapping[OperatorId, LeftOut]) -> float:
        """With these rows left out, and the scores that the operators of a graph need."""
        last = max((op.layer + (op.kind == "ffn") for op, each in chosen.items() if each.chooses), default=0)
        scores = sum(self.scores(OperatorId(layer, "attention") in chosen) for layer in range(last))
        return scores + sum(self.left(op, rows[op]) if op in rows else count for op, count in self.full.items())

    def candidates(self, shares: Iterable[float] = ()) -> Skipped:
        """All steps that the compiler can take: skipping, and keeping each of some shares."""
        return skipping(self.whole) | frozenset(Step(*op, share) for op in self.partial for share in shares)

    def layer(self) -> float:
        """Dense FLOPs of one layer, the mean over the layers."""
        return self.dense / max(1, len(self.full) // 2)


def compiled_report(model: nn.Module, samples: Samples, keep: float = 0.0, levels: bool = False) -> Report:
    """What the compiler makes of the model and its first prompts with every operator skipped, but for a share ``keep``,
    or with ``levels`` at one of two levels.

    Raises:
        OpSkipError: the decoder can't be captured, or nothing in it can be skipped; says why.
    """
    everything = Schedule(late=Late(1.0, samples.rows, keep), modalities=samples.modalities)
    if levels:
        blind = Chooser(((0.0,) * (2 * BUCKETS),) * 2, (0.0, 0.0), (0.0, 0.0), 0.0)
        everything = Schedule(levels=(Schedule(), everything), chooser=blind, modalities=samples.modalities)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingSkippedWarning)  # it is an error here
            report = explain(model, {**samples.inputs(0), "use_cache": False}, schedule=everything)
    except OpSkipError:
        raise
    except Exception as error:  # the model's own code, or Dynamo in it
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise OpSkipError(f"model: {type(model).__name__} can't be captured: {text}") from error
    if not report.rewritten and not keep and not levels:
        raise OpSkipError(f"model: the compiler can skip nothing in {type(model).__name__}: {report.reason}")
    return report


def flops_costs(model: nn.Module, samples: Samples, shares: bool = False, levels: bool = False) -> FlopsCosts:
    """Cost of the prompts, and the operators that the compiler can skip.

    By the formula (DESIGN section 6) where the config gives the sizes and an operator leaves its rows out wholly, else
    as counted in the compiler's two graphs: there a share saves a share less, and scores count nothing.

    Args:
        samples: checked.
        shares: ask the compiler as well which operators can keep a share,
        levels: and which can depend on a level; others count as full.

    Raises:
        OpSkipError: as `compiled_report`, or FLOPs that neither the config nor the graphs give.
    """
    report = compiled_report(model, samples)
    counted = {OperatorId(op.layer, op.kind): op for op in report.operators}
    whole = frozenset(op for op, entry in counted.items() if entry.skipped)
    partial: frozenset[OperatorId] = frozenset()
    if shares:
        kept = compiled_report(model, samples, _ASKED)
        partial = whole & {OperatorId(op.layer, op.kind) for op in kept.operators if op.skipped}
    if levels:
        told = compiled_report(model, samples, levels=True)
        if not told.rewritten:
            raise OptionError(f"levels: the compiler can tell none in {type(model).__name__}: {told.reason}")
        whole = partial = whole & {OperatorId(op.layer, op.kind) for op in told.operators if op.skipped}
    try:
        of = None if any(counted[op].remaining for op in whole) else Geometry.from_config(model)
    except OpSkipError:
        of = None
    if of is not None:
        prompts = [prompt for item in samples.items for prompt in item.rows]
        return formula_costs(of, prompts, whole, partial, samples.rows)
    known = {op: entry for op, entry in counted.items() if entry.flops_before and entry.flops_after is not None}
    if len(known) < len(counted):
        raise OpSkipError("model: the FLOPs of its operators are not known, neither by its config nor by its graph")
    full = {op: float(entry.flops_before or 0) for op, entry in known.items()}
    after = {op: float(entry.flops_after or 0) for op, entry in known.items()}

    def left(op: OperatorId, rows: LeftOut) -> float:
        return after[op] + rows.keep * (full[op] - after[op])

    return FlopsCosts(full, left, lambda skipped: 0.0, whole, partial, samples.rows)


def formula_costs(
    of: Geometry,
    prompts: Sequence[PromptRows],
    whole: frozenset[OperatorId],
    partial: frozenset[OperatorId],
    rows: Rows,
) -> FlopsCosts:
    """Cost of prompts by the formula (DESIGN section 6).

    Args:
        of: sizes of the decoder.
        prompts: rows of each.
        whole, partial, rows: as in `FlopsCosts`.
    """

    @cache
    def flops(kind: str, left_out: LeftOut | None) -> float:
        updated = [(p.all if left_out is None else p.kept(left_out), p.all) for p in prompts]
        return statistics.fmean(of.attention(q, n) if kind == "attention" else of.ffn(q) for q, n in updated)

    @cache
    def scores(skipped: bool) -> float:
        return statistics.fmean(of.scores(min(p.all - p.visual, PROBES), p.all, queries=skipped) for p in prompts)

    full = {op: flops(op.kind, None) for op in all_operators(of.num_layers)}
    return FlopsCosts(
        full, lambda op, left_out: flops(op.kind, left_out), scores, whole, partial, rows, by_formula=True
    )
