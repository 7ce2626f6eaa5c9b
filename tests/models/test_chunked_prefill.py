"""Prefill in chunks on a cache that grows: what is skipped in each chunk, and how often chunks are compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opskip_compile as opskip
from benchmarks.recompiles import Counting
from opskip_compile.backend.reports import REPORTS
from tests.helpers.families import FAMILIES, Family
from tests.helpers.own_decoder import EAGER
from tests.helpers.releases import since_5_23
from tests.helpers.support.calls import generated, merged_rows

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:1 transform:0"
# Prompts whose chunks of ten rows end in the text, in the image, and at its edges; of one to five chunks.
LAYOUTS = (((3, 5),), ((10, 4),), ((14, 20),), ((2, 3, 4),), ((4, 2),), ((30, 6),))


def prompts(family: Family) -> list[dict[str, Tensor]]:
    return [family.inputs(layout, seed) for seed, layout in enumerate(LAYOUTS)]


def run(model: nn.Module, family: Family, **more: Any) -> list[list[Tensor]]:
    return [generated(model, inputs, prefill_chunk_size=10, **more) for inputs in prompts(family)]


@since_5_23("prompts with images are not cut")
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_every_chunk_skips_its_rows_and_is_compiled_as_often_as_dense(name: str) -> None:
    family = FAMILIES[name]
    model = family.build(2)
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), merged_rows):
        want = run(model, family)
    counting, decoder = Counting(dense=True), model.get_decoder()
    decoder.forward = torch.compile(decoder.forward, backend=counting)
    run(model, family)
    del decoder.forward
    torch._dynamo.reset()
    before = REPORTS.count
    got = run(opskip.compile(model, SPEC, options=EAGER), family)
    made = REPORTS.since(before)
    for mine, theirs in zip(got, want, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.shape == b.shape
            assert (a.float() - b.float()).abs().max() <= 1e-4 * b.float().abs().max()
    assert {report.skipped for report in made if report.rewritten} == {("0.attention", "1.attention", "1.ffn")}
    # Qwen3-VL: 9 against 8. Chunks with rows, chunks without and steps are three functions here, and one in dense.
    most = counting.compiles + (name == "qwen3_vl")
    assert 1 <= len(made) <= most, [(len(made), counting.compiles), *(r.recompile for r in made)]
