"""Budgets: what is read, and what can't be met."""

from __future__ import annotations

import pytest

from opskip_compile.calibration.budget import Budget, amount
from opskip_compile.calibration.costs import FlopsCosts
from opskip_compile.calibration.operator_sets import all_operators
from opskip_compile.errors import OptionError

EVERY = all_operators(2)
COSTS = FlopsCosts(dict.fromkeys(EVERY, 1e12), lambda op, rows: 25e10, lambda skipped: 0.0, frozenset(EVERY))


@pytest.mark.parametrize(
    ("text", "field", "value", "said"),
    [
        (0.337, "cut", 0.337, "33.7% fewer FLOPs"),
        ("0.5", "cut", 0.5, "50.0% fewer FLOPs"),
        ("33.7 %", "cut", 0.337, "33.7% fewer FLOPs"),
        ("3 TFLOPs", "flops", 3e12, "3 TFLOPs"),
        ("500gflops", "flops", 5e11, "500 GFLOPs"),
        ("120ms", "milliseconds", 120.0, "120 ms"),
        ("KL < 0.01", "divergence", 0.01, "KL below 0.01"),
        ("kl<1e-3", "divergence", 0.001, "KL below 0.001"),
        (Budget(cut=0.2), "cut", 0.2, "20.0% fewer FLOPs"),
    ],
)
def test_read(text: object, field: str, value: float, said: str) -> None:
    budget = Budget.of(text)
    assert getattr(budget, field) == pytest.approx(value)
    assert str(budget) == said
    assert sum(part is not None for part in vars(budget).values()) == 1


@pytest.mark.parametrize(
    "text",
    [None, True, "", "fast", "-0.3", 0, 0.0, 1, 1.5, "100%", "0ms", "nan", float("nan"), float("inf"), "kl>1", []],
)
def test_refused(text: object) -> None:
    with pytest.raises(OptionError, match=r"^budget: "):
        Budget.of(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (0.8, "80.0% fewer FLOPs can't be met: with every operator skipped that can be, 1 TFLOPs of 4 TFLOPs are left"),
        ("0.5 TFLOPs", "500 GFLOPs can't be met"),
        ("5 TFLOPs", "5 TFLOPs is met by the dense model, which takes 4 TFLOPs"),
    ],
)
def test_what_can_not_be_met(text: object, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Budget.of(text).check(COSTS, COSTS.candidates())


def test_costs_of_a_budget() -> None:
    assert Budget.of(0.25).cost(COSTS) == pytest.approx(3e12)
    assert Budget.of("2 TFLOPs").cost(COSTS) == 2e12
    assert Budget.of("kl<1").cost(COSTS) is None
    Budget.of("kl<1").check(COSTS, frozenset())
    Budget.of(0.75).check(COSTS, COSTS.candidates())


@pytest.mark.parametrize(
    ("value", "unit", "said"), [(5.3e12, "FLOPs", "5.3 TFLOPs"), (7, "FLOPs", "7 FLOPs"), (12.34, "ms", "12.34 ms")]
)
def test_amounts(value: float, unit: str, said: str) -> None:
    assert amount(value, unit) == said
