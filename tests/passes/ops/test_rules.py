"""Selection pushdown, rule by rule: every rule of the table moves a selection up where it is right and declines with
its reason where it is not; the numbers are the full result's rows in both cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, distributed

from opskip_compile.integrations.vllm import operations as of_vllm
from opskip_compile.passes.ops import known_operations
from tests.helpers import quantised_cases, rule_cases, rule_refusals
from tests.helpers.graphs import assert_rows, push
from tests.helpers.rule_cases import Case

PUSHED, DECLINED = (*rule_cases.PUSHED, *quantised_cases.PUSHED), (*rule_refusals.DECLINED, *quantised_cases.DECLINED)

SIZES = {"S": 7, "W": 8, "H": 2, "D": 4, "V": 9, "K": 5}
# Rows between images, an element with one kept row, an element that ends in visual rows.
VISUAL = torch.tensor([[0, 1, 1, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 0, 1, 1, 1]]).bool()
ONE_KEPT = VISUAL[1:2]
ELSEWHERE = {value.name() for value in vars(of_vllm).values() if isinstance(value, torch._ops.OpOverload)}
"""What the plug-in of vLLM declares: `tests/integrations/test_vllm_rewrite.py` and `tests/vllm`."""
ELSEWHERE |= {"_flash_attn_forward", "opskip::attend_by_package", "flex_attention", "opskip::attend_by_flex"}
"""Kernels that are lifted or stay full: `tests/passes/normalize`."""
ELSEWHERE |= {name for name in known_operations() if name.startswith(("bitsandbytes::", "quanto::"))}
"""Where the package is installed: `tests/passes/ops/test_bitsandbytes.py`, `test_quanto.py`."""


def make(shape: str, batch: int, dynamic: bool = False) -> Tensor:
    """A random input; with ``dynamic`` its batch and sequence are symbolic."""
    kind, _, dims = shape.rpartition(":")
    size = [batch if d == "B" else SIZES.get(d) or int(d) for d in dims]
    if kind == "i":
        x = torch.randint(0, 7, size)
    elif kind == "b":
        x = torch.rand(size) > 0.5
        x[..., 0] = True
    else:
        x = torch.rand(size) * 0.8 + 0.1
    for at, letter in enumerate(dims if dynamic else ""):
        if letter == "S" or (letter == "B" and batch > 1):
            torch._dynamo.mark_dynamic(x, at)
    return x


def params(table: tuple[Case, ...]) -> list[object]:
    """Every case for every batch that it has."""
    return [
        pytest.param(case, batch, id=f"{case}-{i}-batch{batch}")
        for i, case in enumerate(table)
        for batch in case.batches
    ]


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of this process alone, for the exchanges."""
    meet = tmp_path_factory.mktemp("alone") / "meet"
    distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("case", "batch"), params(PUSHED))
def test_selection_moves_above_the_operation(case: Case, batch: int) -> None:
    inputs = [make(shape, batch) for shape in case.shapes.split()]
    visual = VISUAL[:batch]
    done = push(case.fn, visual, *inputs, dim=case.dim)
    assert set(case.names.split()) <= set(done.before)
    assert done.stops == []
    assert set(done.selected) == {"input"}, done.after
    assert {"reshape" if name == "view" else name for name in case.names.split()} <= set(done.after)
    full = case.fn(*inputs)
    assert_rows(done.result, full, visual, case.dim)


@pytest.mark.parametrize("case", [c for c in PUSHED if c.batches == (1, 3)], ids=str)
def test_symbolic_sizes_move_the_same_way(case: Case) -> None:
    inputs = [make(shape, 3, dynamic=True) for shape in case.shapes.split()]
    visual = VISUAL.clone()
    torch._dynamo.mark_dynamic(visual, 1)
    done = push(case.fn, visual, *inputs, dim=case.dim)
    assert done.stops == []
    assert set(done.selected) == {"input"}, done.after
    assert_rows(done.result, case.fn(*inputs), visual, case.dim)


@pytest.mark.parametrize(("case", "batch"), params(DECLINED))
def test_rule_declines_with_its_reason(case: Case, batch: int) -> None:
    inputs = [make(shape, batch) for shape in case.shapes.split()]
    visual = VISUAL[:batch]
    done = push(case.fn, visual, *inputs, dim=case.dim)
    stop = done.stops[0]
    assert case.reason in stop.reason
    assert case.reason
    assert stop.operation in case.names.split()
    assert set(case.names.split()) <= set(done.before)
    full = case.fn(*inputs)
    assert_rows(done.result, full, visual, case.dim)


def test_every_rule_has_a_positive_and_a_negative_case() -> None:
    pushed = {name for case in PUSHED for name in case.names.split() if case.batches}
    declined = {name for case in DECLINED for name in case.names.split() if case.batches}
    known = {name for name in known_operations() if name not in ELSEWHERE and not name.startswith("vllm::")}
    assert known - pushed == set()
    assert known - declined == set()
