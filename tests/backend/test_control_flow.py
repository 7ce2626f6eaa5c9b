"""What torch raises in a backend to steer Dynamo is no failure: it passes through, and the next capture counts."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch._dynamo import exc

import opskip_compile as opskip
from opskip_compile import _compat
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.own_decoder import Decoder, visual

pytestmark = pytest.mark.usefixtures("fresh")
STEERING = [exc.RestartAnalysis, *exc.RestartAnalysis.__subclasses__(), exc.SkipFrame]


@pytest.mark.parametrize("error", STEERING, ids=lambda error: error.__name__)
def test_whatever_steers_is_known(error: type[BaseException]) -> None:
    assert _compat.steers_dynamo(error.__new__(error))
    assert not _compat.steers_dynamo(RuntimeError())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_another_capture_while_it_is_lowered(regions: bool, strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def lower(gm: torch.fx.GraphModule, inputs: object, config: object) -> object:
        asked.append(sum("invoke_subgraph" in str(node.target) for node in gm.graph.nodes))
        if len(asked) == 1:
            raise exc.TensorifyScalarRestartAnalysis
        gm.recompile()
        return gm.forward

    monkeypatch.setattr("opskip_compile._compat.inductor", lower)
    family = FAMILIES["llava"]
    model, inputs = family.build(3), family.inputs()
    with opskip.oracle(model, opskip.Schedule.from_spec("silent:1-2"), visual_mask(inputs)):
        want = model(**inputs).logits
    opskip.compile(model, "silent:1-2", options={"regions": regions, "strict": strict})
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        got = model(**inputs).logits
    torch.testing.assert_close(got, want)
    assert len(asked) == 2 and (min(asked) > 0) == regions
    assert [len(report.skipped) for report in opskip.reports() if report.operators] == [4]


def test_another_capture_from_within_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from opskip_compile.passes import steps

    plain, asked = steps.match_operators, []

    def first_restarts(*args: Any) -> Any:
        asked.append(1)
        if len(asked) == 1:
            raise exc.TensorifyScalarRestartAnalysis
        return plain(*args)

    monkeypatch.setattr("opskip_compile.passes.steps.match_operators", first_restarts)
    model, arguments = Decoder(), (torch.randn(1, 12, 16), visual(1, 12, 2, 8))
    options = {"schedule": "silent:0", "lower": "eager"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        torch.compile(model, backend="opskip", options=options)(*arguments)
    assert len(opskip.last_report().skipped) == 2


@pytest.mark.inductor
def test_dynamic_by_inductor() -> None:
    """Inductor asks for another capture: LLaVA's graph takes a float that is a constant."""
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    with opskip.oracle(model, opskip.Schedule.from_spec("silent:1"), visual_mask(inputs)):
        want = model(**inputs).logits
    opskip.compile(model, "silent:1", dynamic=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        got = model(**inputs).logits
    torch.testing.assert_close(got, want)
    assert len(opskip.last_report().skipped) == 2
