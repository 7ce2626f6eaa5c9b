"""Where scatters end up: the results are compared with the oracle wherever anything is."""

from __future__ import annotations

import pytest
import torch

import opskip_compile as opskip
from opskip_compile.passes.ops import op_name
from opskip_compile.passes.rewrite.selection import is_scatter
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.grabbed import grab
from tests.helpers.own_decoder import EAGER

pytestmark = pytest.mark.usefixtures("fresh")
NORM, STREAM = True, False


@pytest.mark.parametrize(
    ("spec", "over"),
    [
        ("silent:1-3", [NORM, NORM, NORM]),
        ("silent:0-1", [NORM, STREAM]),  # the sums of layer 2 need the stream
        ("transform:1 silent:3", [STREAM, NORM]),
        ("silent:1 silent@through_visual:2-3", [STREAM, NORM, NORM]),  # other rows
        ("attend:1-2", [STREAM, STREAM]),
    ],
)
def test_what_scatters_write_over(spec: str, over: list[bool]) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(4), family.inputs()
    with torch.no_grad(), opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
        wanted = model(**inputs).logits
    found = grab(model, inputs, spec)
    scatters = [node for node in found.after.graph.nodes if is_scatter(node)]
    assert [op_name(node.args[0]) == "mul" for node in scatters] == over, "the last operation of a norm"
    assert {each.name: each.changed for each in found.report.passes}["sink"] == over.count(NORM)
    with torch.no_grad():
        torch.testing.assert_close(opskip.compile(model, spec, options=EAGER)(**inputs).logits, wanted)
