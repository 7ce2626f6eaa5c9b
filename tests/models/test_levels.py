"""Levels in real decoders: every prompt gets what the oracle gives at its level, in one graph for all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import opskip_compile as opskip
from opskip_compile.backend.reports import REPORTS
from opskip_compile.models.critical import AttentionWatch
from opskip_compile.models.rows import token_mask, visual_tokens
from opskip_compile.passes.analysis.scored import LAYER_ALONE, LEVEL_LATE, NO_SCORES
from tests.helpers.families import FAMILIES
from tests.helpers.leveled import leveled
from tests.helpers.own_decoder import EAGER
from tests.helpers.support import ZOO
from tests.helpers.support.calls import static_cache

pytestmark = pytest.mark.usefixtures("fresh")
LAYOUT = ((3, 5), (2, 4, 3), (4, 4))  # text and images in turn, of three prompts; the shorter ones are padded
SPECS = (
    "none",
    "attend@keep=0.5:1 silent:3 transform@keep=0.25:0",
    "silent:2-3 attend@keep=0.25:1 silent@keep=0.1:0",
)
NOBODY, EVERYBODY = -1000.0, 1000.0


def logits(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**inputs).logits
    return result[inputs["attention_mask"].bool()]


def by_oracle(model: nn.Module, inputs: Any, schedule: opskip.Schedule) -> Tensor:
    visual = token_mask(inputs["input_ids"], visual_tokens(model))
    assert visual is not None
    with opskip.oracle(model, schedule, visual):
        return logits(model, inputs)


def some_threshold(model: nn.Module, inputs: Any) -> opskip.Schedule:
    """A schedule by which the prompts of this batch take different levels."""
    visual = token_mask(inputs["input_ids"], visual_tokens(model))
    assert visual is not None
    for seed in range(40):
        schedule = leveled(*SPECS, seed=seed, threshold=-0.3)
        watch = AttentionWatch(schedule.chooser)
        with opskip.oracle(model, schedule, visual, watch=watch):
            logits(model, inputs)
        if len(set(watch.levels)) > 1:
            return schedule
    raise AssertionError("no seed tells these prompts apart")


@pytest.mark.parametrize("family", ["qwen3_vl", "llava", "internvl", "gemma3", "gemma4", "qwen3_vl_moe"])
def test_every_prompt_gets_its_level(family: str) -> None:
    model = ZOO[family].build(4).eval()
    inputs = dict(ZOO[family].inputs(LAYOUT))
    dense = logits(model, inputs)
    schedule = some_threshold(model, inputs)
    for each in (schedule, leveled(*SPECS, threshold=NOBODY), leveled(*SPECS, threshold=EVERYBODY)):
        torch._dynamo.reset()
        opskip.compile(model, each, options={**EAGER, "strict": True})
        got = logits(model, inputs)
        report = opskip.last_report()
        opskip.remove(model)
        assert len(report.levels) == len(LAYOUT)
        torch.testing.assert_close(got, by_oracle(model, inputs, each), atol=1e-4, rtol=1e-4)
        if each is schedule:
            assert len(set(report.levels)) > 1
            assert "each prompt takes a level of its own" in str(report)
        elif not any(report.levels):
            torch.testing.assert_close(got, dense, atol=1e-5, rtol=1e-5)  # the first level is full
        else:
            torch.testing.assert_close(got, by_oracle(model, inputs, each.levels[-1]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_with_a_cache_of_fixed_size(family: str) -> None:
    """Where its keys are it counts in the first layer, behind the choice; the count is moved before it."""
    model = ZOO[family].build(4).eval()
    inputs = dict(ZOO[family].inputs(LAYOUT))
    schedule = some_threshold(model, inputs)
    torch._dynamo.reset()
    opskip.compile(model, schedule, options={**EAGER, "strict": True})
    with torch.no_grad():
        got = model(**inputs, past_key_values=static_cache(model)).logits[inputs["attention_mask"].bool()]
    report = opskip.last_report()
    opskip.remove(model)
    assert len(set(report.levels)) > 1
    torch.testing.assert_close(got, by_oracle(model, inputs, schedule), atol=1e-4, rtol=1e-4)


def test_a_report_of_a_new_graph_knows_of_no_batch() -> None:
    model, inputs = ZOO["llava"].build(4).eval(), dict(ZOO["llava"].inputs(LAYOUT))
    schedule = leveled(*SPECS)
    opskip.compile(model, schedule, options=EAGER)
    logits(model, inputs)
    assert len(opskip.last_report().levels) == len(LAYOUT)
    opskip.remove(model)
    assert opskip.explain(model, inputs, schedule).levels == ()
    alike = leveled("attend@keep=0.5:1", "attend@keep=0.5:1")
    assert not opskip.explain(model, inputs, alike).digest  # nothing depends on the level


def test_one_graph_for_all_levels() -> None:
    """Other prompts of the same size, other levels: nothing is compiled again."""
    family = ZOO["llava"]
    model = family.build(4).eval()
    schedule = some_threshold(model, dict(family.inputs(LAYOUT)))
    torch._dynamo.reset()
    opskip.compile(model, schedule, options=EAGER)
    before, seen = REPORTS.count, set()
    for seed in range(6):
        inputs = dict(family.inputs(LAYOUT, seed=seed))
        got = logits(model, inputs)
        seen.add(opskip.last_report().levels)
        opskip.remove(model)
        torch.testing.assert_close(got, by_oracle(model, inputs, schedule), atol=1e-4, rtol=1e-4)
        opskip.compile(model, schedule, options=EAGER)
    assert len(seen) > 1
    assert sum(bool(report.operators) for report in REPORTS.since(before)) <= 6  # one for each time it was attached


class Products(TorchDispatchMode):
    """Counts the numbers that products of matrices make, those of experts included."""

    made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten._grouped_mm.default):
            self.made += out.numel()
        return out


def products(model: nn.Module, inputs: Any, schedule: opskip.Schedule) -> tuple[int, tuple[int, ...]]:
    """What `Products` counts in one compiled call, and the levels that it took."""
    torch._dynamo.reset()
    opskip.compile(model, schedule, options={**EAGER, "strict": True})
    with torch.no_grad(), Products() as counter:
        model(**inputs)
        counter.made = 0
        model(**inputs)
    levels = opskip.last_report().levels
    opskip.remove(model)
    return counter.made, levels


@pytest.mark.parametrize(("family", "seed"), [("llava", 2), ("qwen3_vl_moe", 0)])
def test_no_prompt_pays_for_the_level_of_another(family: str, seed: int) -> None:
    """A batch computes as much as its prompts alone, though one of them is full and another skips all FFNs."""
    model = ZOO[family].build(4).eval()
    inputs = dict(ZOO[family].inputs(((3, 5), (4, 4), (2, 6), (5, 3))))
    schedule = leveled("none", "attend:1-3 attend@keep=0.5:0", "attend:0-3", seed=seed, threshold=-0.3)
    together, levels = products(model, inputs, schedule)
    assert {0, 2} <= {*levels}
    prompts = [{name: value.chunk(4)[i] for name, value in inputs.items()} for i in range(4)]
    alone = [products(model, prompt, schedule) for prompt in prompts]
    assert [level for _, taken in alone for level in taken] == list(levels)
    assert together == sum(count for count, _ in alone)
    assert products(model, inputs, opskip.Schedule())[0] > together
    assert together > products(model, inputs, schedule.levels[2])[0]


def test_through_inductor() -> None:
    model = FAMILIES["qwen3_vl"].build(4).eval()
    inputs = dict(ZOO["qwen3_vl"].inputs(LAYOUT))
    schedule = some_threshold(model, inputs)
    want = by_oracle(model, inputs, schedule)
    torch._dynamo.reset()
    opskip.compile(model, schedule)
    torch.testing.assert_close(logits(model, inputs), want, atol=1e-4, rtol=1e-4)
    assert len(set(opskip.last_report().levels)) > 1


def test_gradients_are_the_oracles() -> None:
    model = FAMILIES["llava"].build(4).eval().requires_grad_()
    inputs = dict(ZOO["llava"].inputs(LAYOUT))
    schedule = some_threshold(model, inputs)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        with torch.enable_grad():
            model(**inputs).logits[inputs["attention_mask"].bool()].square().sum().backward()
        return [p.grad.clone() for p in model.get_decoder().parameters() if p.grad is not None]

    visual = token_mask(inputs["input_ids"], visual_tokens(model))
    assert visual is not None
    with opskip.oracle(model, schedule, visual):
        want = gradients()
    torch._dynamo.reset()
    opskip.compile(model, schedule, options=EAGER)
    got = gradients()
    assert len(set(opskip.last_report().levels)) > 1
    assert len(got) == len(want) > 4
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("attention", "regional", "why"), [("eager", False, NO_SCORES), ("sdpa", True, LAYER_ALONE)])
def test_where_no_level_can_be_told_operators_stay_full(attention: str, regional: bool, why: str) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(4), family.inputs()
    model.set_attn_implementation(attention)
    want = model(**inputs).logits
    opskip.compile(model, leveled("none", "attend:1-3", threshold=EVERYBODY), options=EAGER, regional=regional)
    with pytest.warns(opskip.NothingSkippedWarning, match="critical rows|level of a prompt"):
        got = model(**inputs).logits
    torch.testing.assert_close(got, want)
    assert why in {miss.reason for report in opskip.reports() for miss in report.misses}


def test_before_a_recurrence_no_level_is_known() -> None:
    """A hybrid whose first layer has no attention: what depends on the level stays full and says so."""
    family = ZOO["qwen3_5"]
    model = family.build(4).eval()
    inputs = dict(family.inputs(LAYOUT))
    report = opskip.explain(model, inputs, leveled("attend:2", "attend:2-3", threshold=EVERYBODY))
    assert report.skipped == ("2.ffn",)
    assert [miss.reason for miss in report.misses] == [LEVEL_LATE]
    assert report.levels == ()


class Calls(TorchDispatchMode):
    """Names of the operators of ours that run."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "opskip":
            self.made.append(func._opname)
        return func(*args, **(kwargs or {}))


def test_numbers_of_all_shares_come_to_the_host_at_once() -> None:
    model, inputs = ZOO["llava"].build(4).eval(), dict(ZOO["llava"].inputs(LAYOUT))
    opskip.compile(model, leveled(*SPECS), options={**EAGER, "strict": True})
    with Calls() as calls:
        logits(model, inputs)
        calls.made.clear()
        logits(model, inputs)
    assert calls.made.count("on_host") == 1
    assert calls.made.count("kept_by_level") > 1
