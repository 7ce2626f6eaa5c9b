"""What one cell of the support matrix says, and the one way in which it is measured.

A form runs a call dense, compiled, and under the oracle *of what the report says was skipped*. So a form in which an
operator stays full is compared as well, and no cell can say "skips" where the report does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.backend import capture
from opskip_compile.backend.reports import REPORTS
from opskip_compile.models.rows import visual_tokens
from opskip_compile.passes.steps import NO_ROWS
from opskip_compile.schedule.modalities import VISUAL, tokens_by_modality
from tests.helpers.leveled import skipping

LAYERS = 4
SPEC = "silent:2-3 transform:0 attend:1"
KEEP = "silent@keep=0.5:2-3 transform@keep=0.3:0 attend@keep=0.25:1"
THROUGH = "silent@through_visual:2-3 transform:0 attend:1"
SKIPS, PARTLY, DENSE, ABSENT = "skips", "partly", "dense", "absent"
Call = Callable[[Any], Sequence[Tensor]]
Install = Callable[[nn.Module, str], Any]
Rows = Tensor | Callable[[Mapping[str, Any]], Tensor | None]


_INSTEAD: ContextVar[opskip.Schedule | str] = ContextVar("instead of SPEC", default=SPEC)


@contextmanager
def instead_of_spec(spec: opskip.Schedule | str) -> Iterator[None]:
    """Whatever is measured in the block with `SPEC` is measured with ``spec``."""
    token = _INSTEAD.set(spec)
    try:
        yield
    finally:
        _INSTEAD.reset(token)


@dataclass(frozen=True)
class Outcome:
    """One cell.

    Attributes:
        state: ``"skips"``: the oracle's result, and every operator of the schedule leaves its rows out wholly;
            ``"partly"``: the oracle's result of fewer operators, or with operations that still run on every row;
            ``"dense"``: the dense result, nothing skipped; ``"absent"``: the family has no such form.
        reason: why it is not ``"skips"``, in the words of the report.
    """

    state: str
    reason: str = ""


def in_place(model: nn.Module, spec: str) -> nn.Module:
    """`opskip_compile.compile` with the fast lowering."""
    return opskip.compile(model, spec, options={"lower": "eager"})


def measure(
    model: nn.Module,
    call: Call,
    mask: Rows,
    spec: str = SPEC,
    install: Install = in_place,
    tolerance: float = 1e-4,
    oracle: Callable[[nn.Module, opskip.Schedule], Any] | None = None,
    exact: tuple[nn.Module, Call] | None = None,
    check: Callable[[Sequence[opskip.Report]], None] | None = None,
) -> Outcome:
    """Run ``call`` dense, compiled and under the oracle, and compare.

    Args:
        model: a transformers model of `LAYERS` layers.
        call: runs a model and returns the tensors to compare (logits of shown rows, keys and values, ...).
        mask: bool ``(batch, sequence)``, the visual rows of the prefill, or what finds them for each forward, as
            `opskip_compile.models.oracle` takes them.
        spec: the schedule; within `instead_of_spec` another one instead of `SPEC`.
        install: compiles the model; what it returns is handed to ``call``.
        tolerance: of the largest value of each tensor.
        oracle: the definition as a context manager, if one mask does not do.
        exact: for a model of 16 bit, the same model and its call in float32. The oracle is that of ``exact``, and the
            error against it may be as large as that of the dense model against dense ``exact``, whatever ``tolerance``.
        check: asserts something about the reports of all graphs of the compiled run.

    Raises:
        AssertionError: the compiled result is not the oracle's, or the schedule does not show in the dense one.
    """
    whole = opskip.Schedule.of(_INSTEAD.get() if spec == SPEC else spec)
    if not visual_tokens(model):
        whole = replace(whole, modalities=tuple(tokens_by_modality(model.config)) or VISUAL)  # of audio alone
    spec = whole if whole.levels else whole.to_spec()  # type: ignore[assignment]  # whoever compiles takes both
    torch._dynamo.reset()
    capture.install()  # not only with the first graph, so that the order of cells does not matter
    try:
        dense = call(model)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return Outcome(ABSENT, f"the dense model refuses it: {type(error).__name__}: {str(error).splitlines()[0]}")
    count = REPORTS.count
    got = call(install(model, spec))
    every = REPORTS.since(count)
    reports = [report for report in every if report.operators]
    opskip.remove(model)
    model._compiled_call_impl = None
    if check is not None:
        check(every)
    done = [report for report in reports if report.rewritten]
    sets: dict[frozenset[int], set[tuple[tuple[int, str, str | None], ...]]] = {}  # by layers that the graph holds
    for report in done:
        found = tuple((op.layer, op.kind, op.rows) for op in report.operators if op.skipped)
        sets.setdefault(frozenset(op.layer for op in report.operators), set()).add(found)
    assert all(len(found) == 1 for found in sets.values()), f"graphs of one call skip different operators: {sets}"
    assert len([layer for held in sets for layer in held]) == len(frozenset().union(*sets)), "graphs share layers"
    skipped = tuple(operator for (found,) in sets.values() for operator in found)
    schedule = skipping(skipped, whole)
    judge, judged = (model, call) if exact is None else exact
    with oracle(judge, schedule) if oracle else opskip.oracle(judge, schedule, mask):
        want = judged(judge)
    rounding = ""
    if exact is None:
        assert_equal(got, want, tolerance)
    else:
        rounding = compare_16_bit(got, want, dense, judged(judge))
    if skipped and (not isinstance(mask, Tensor) or bool(mask.any())):
        assert any(differ(a, b) > 1e-3 for a, b in zip(dense, want, strict=True)), "the schedule does not show"
    wanted = {
        (layer, kind, str(rows))
        for layer, states in enumerate(whole.resolve(LAYERS))
        for kind, rows in (("attention", states.attention), ("ffn", states.ffn))
        if rows is not None
    }
    if not skipped:
        reasons = [r.reason for r in reports if r.reason] or [r.reason for r in every if r.reason]
        reasons = [reason for reason in reasons if reason != NO_ROWS.reason] or reasons
        assert reasons, "nothing is skipped and no report says why"
        return Outcome(DENSE, reasons[-1])
    left = [miss.reason for report in reports for miss in report.misses]
    left += sorted({stop.reason for report in done for stop in report.stops if stop.operator})
    rest = sum((report.remaining() for report in done), Counter())
    if {*skipped} == wanted and not rest:
        return Outcome(PARTLY, rounding) if rounding else Outcome(SKIPS)
    assert left or rest, "the report names no operator that stays full"
    left = left or [f"still run on every row: {', '.join(sorted(rest))}"]
    full = sorted(f"{layer}.{kind}" for layer, kind, _ in wanted - {*skipped})
    return Outcome(PARTLY, "; ".join([*(["full: " + ", ".join(full)] if full else []), *dict.fromkeys(left)]))


def differ(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1e-12))


def assert_equal(got: Sequence[Tensor], want: Sequence[Tensor], tolerance: float = 1e-4) -> None:
    """Every tensor within ``tolerance``, as `differ` counts."""
    assert len(got) == len(want) > 0
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape, f"tensor {i}: {tuple(a.shape)}, the oracle has {tuple(b.shape)}"
        assert bool(a.isfinite().all()) or not bool(b.isfinite().all()), f"tensor {i}: not finite"
        assert differ(a, b) <= tolerance, f"tensor {i}: off by {differ(a, b):.1e}"


def compare_16_bit(
    got: Sequence[Tensor], want: Sequence[Tensor], dense: Sequence[Tensor], exact: Sequence[Tensor]
) -> str:
    """Empty if the mean error of ``got`` against ``want`` is at most that of ``dense`` against ``exact``.

    Up to a tenth more is said with both numbers: it is rounding, and it is not what the criterion asks for.
    """
    assert [a.shape for a in got] == [a.shape for a in want]
    error, allowed = mean_error(got, want), mean_error(dense, exact)
    said = f"the error against float32 is {error:.3e}, that of the dense model {allowed:.3e}"
    assert error <= 1.1 * allowed, said
    return said if error > allowed else ""


def mean_error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """Mean difference as a share of the largest value, over all tensors."""
    pairs = [(a.float(), b.float()) for a, b in zip(got, want, strict=True) if b.numel()]
    return sum(float((a - b).abs().mean() / b.abs().max().clamp_min(1e-12)) for a, b in pairs) / len(pairs)
