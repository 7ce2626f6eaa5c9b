"""What one cell of the support matrix says, and the one way in which it is measured.

A form runs a call dense, compiled, and under the oracle *of what the report says was skipped*. So a form in which an
operator stays full is compared as well, and no cell can say "skips" where the report does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.backend import REPORTS
from opskip_compile.passes.pipeline import NO_ROWS

LAYERS = 4
SPEC = "silent:2-3 transform:0 attend:1"
THROUGH = "silent@through_visual:2-3 transform:0 attend:1"
SKIPS, PARTLY, DENSE, ABSENT = "skips", "partly", "dense", "absent"
Call = Callable[[Any], Sequence[Tensor]]
Install = Callable[[nn.Module, str], Any]


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
    mask: Tensor,
    spec: str = SPEC,
    install: Install = in_place,
    tolerance: float = 1e-4,
    oracle: Callable[[nn.Module, opskip.Schedule], Any] | None = None,
) -> Outcome:
    """Run ``call`` dense, compiled and under the oracle, and compare.

    Args:
        model: a transformers model of `LAYERS` layers.
        call: runs a model and returns the tensors to compare (logits of shown rows, keys and values, ...).
        mask: bool ``(batch, sequence)``, the visual rows of the prefill.
        spec: the schedule.
        install: compiles the model; what it returns is handed to ``call``.
        tolerance: of the largest value of each tensor.
        oracle: the definition as a context manager, if one mask does not do.

    Raises:
        AssertionError: the compiled result is not the oracle's, or the schedule does not show in the dense one.
    """
    torch._dynamo.reset()
    dense = call(model)
    count = REPORTS.count
    got = call(install(model, spec))
    reports = [report for report in REPORTS.since(count) if report.operators]
    opskip.remove(model)
    model._compiled_call_impl = None
    done = [report for report in reports if report.rewritten]
    sets = {tuple((op.layer, op.kind, op.rows) for op in report.operators if op.skipped) for report in done}
    assert len(sets) <= 1, f"graphs of one call skip different operators: {sets}"
    skipped = next(iter(sets), ())
    schedule = as_schedule(skipped)
    with oracle(model, schedule) if oracle else opskip.oracle(model, schedule, mask):
        want = call(model)
    assert_equal(got, want, tolerance)
    if skipped and bool(mask.any()):
        assert any(differ(a, b) > 1e-3 for a, b in zip(dense, want, strict=True)), "the schedule does not show"
    wanted = {
        (layer, kind, rows)
        for layer, states in enumerate(opskip.Schedule.from_spec(spec).resolve(LAYERS))
        for kind, rows in (("attention", states.attention), ("ffn", states.ffn))
        if rows is not None
    }
    if not skipped:
        every = [report for report in REPORTS.since(count) if report.reason]
        reasons = [report.reason for report in reports if report.reason] or [report.reason for report in every]
        reasons = [reason for reason in reasons if reason != NO_ROWS] or reasons  # other graphs than the decoder's
        assert reasons, "nothing is skipped and no report says why"
        return Outcome(DENSE, reasons[-1])
    report = done[-1]
    left = [miss.reason for miss in report.misses] + sorted({stop.reason for stop in report.stops if stop.operator})
    if {*skipped} == wanted and not report.remaining():
        return Outcome(SKIPS)
    assert left or report.remaining(), "the report names no operator that stays full"
    full = sorted(f"{layer}.{kind}" for layer, kind, _ in wanted - {*skipped})
    return Outcome(PARTLY, "; ".join([*(["full: " + ", ".join(full)] if full else []), *dict.fromkeys(left)]))


def as_schedule(skipped: Sequence[tuple[int, str, str | None]]) -> opskip.Schedule:
    """The schedule that skips just these ``(layer, kind, rows)``."""
    words = {"attention": "transform", "ffn": "attend"}
    parts = [f"{words[kind]}@{rows}:{layer}" for layer, kind, rows in skipped]
    return opskip.Schedule.from_spec(" ".join(parts) or "none")


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
