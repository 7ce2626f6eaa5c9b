"""Processes with prompts of their own: FSDP gathers weights layer by layer, DDP stands around the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from torch.distributed.fsdp import fully_shard

import opskip_compile as opskip
from opskip_compile.passes.refusal import Why
from tests.helpers.families import FAMILIES, UNEVEN, visual_mask
from tests.helpers.own_decoder import EAGER
from tests.helpers.processes import several

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:1 attend:0"
LAYERS = {("0.ffn",), ("1.attention", "1.ffn")}
WHOLE = {("0.ffn", "1.attention", "1.ffn")}


def by_layer(model: Any) -> nn.Module:
    for layer in model.get_decoder().layers:
        fully_shard(layer)
    return fully_shard(model)


def around_the_model(model: Any) -> nn.Module:
    return fully_shard(model)


def in_buckets(model: Any) -> nn.Module:
    """Of a size at which Dynamo's own treatment of DDP, which splits graphs at buckets, gives up."""
    return nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.001)


def run(rank: int, name: str, wrap: Callable[[Any], nn.Module], first: bool, regional: bool, layout: Any) -> None:
    """Skips like the oracle of the whole model on one process, for prompts that others do not have."""
    family = FAMILIES[name]
    model, inputs, text = family.build(2), family.inputs(layout[rank]), family.inputs(((9 + rank,),))
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = model(**inputs).logits
    dense, words = model(**inputs).logits, model(**text).logits
    assert (want - dense).abs().max() > 1e-2
    if first:
        opskip.compile(model, SPEC, options=EAGER, regional=regional)
        wrapped = wrap(model)
    else:
        wrapped = wrap(model)
        opskip.compile(model, SPEC, options=EAGER, regional=regional)
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        got = wrapped(**inputs).logits
        # One process has an image, and the other one has not.
        mixed = wrapped(**(text if rank else inputs)).logits
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    other = words if rank else want
    assert (mixed - other).abs().max() <= 1e-4 * other.abs().max()
    skipped = {report.skipped for report in opskip.reports() if report.rewritten}
    assert skipped == (LAYERS if wrap is by_layer or regional else WHOLE)
    opskip.remove(model)
    again = wrapped(**inputs).logits
    assert (again - dense).abs().max() <= 1e-5 * dense.abs().max()


@pytest.mark.parametrize(
    ("name", "wrap", "first"),
    [
        ("llava", by_layer, False),
        ("qwen3_vl", by_layer, True),
        ("llava", around_the_model, False),
        ("llava", in_buckets, True),
        ("qwen3_vl", in_buckets, False),
    ],
)
def test_processes_with_prompts_of_their_own(name: str, wrap: Callable[[Any], nn.Module], first: bool) -> None:
    several(run, 2, name, wrap, first, False, (UNEVEN, ((4, 5),)), patience=60)


def test_regional() -> None:
    several(run, 2, "llava", by_layer, False, True, (UNEVEN, ((4, 5),)), patience=60)


def explained(rank: int) -> str:
    family = FAMILIES["llava"]
    model = by_layer(family.build(2))
    report = opskip.explain(model, family.inputs(), SPEC)
    assert report.refusal is not None
    assert report.refusal.why is Why.PART
    return report.reason


def test_explain_says_that_it_can_not_capture_the_decoder() -> None:
    assert "compile goes layer by layer" in several(explained, 2, patience=60)[0]
