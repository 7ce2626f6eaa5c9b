"""Decoders that transformers splits among processes: the rewritten ones equal the oracle of the whole dense model."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import opskip_compile as opskip
from opskip_compile.backend import agreement
from opskip_compile.passes.analysis.split_heads import SPREAD
from tests.helpers.families import FAMILIES, UNEVEN, Family, visual_mask
from tests.helpers.leveled import leveled
from tests.helpers.own_decoder import EAGER
from tests.helpers.processes import bytes_in_decoder, several, split_model, with_heads
from tests.helpers.support.forms import Member
from tests.helpers.support.zoo import ZOO

pytestmark = pytest.mark.usefixtures("fresh")
LAYERS = 3


def in_process(
    rank: int, family: Member, folder: Path, specs: tuple[str, ...], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """What one process finds, with each of the schedules."""
    model, inputs, found = split_model(folder), family.inputs(UNEVEN), []
    for spec in specs:
        opskip.compile(model, spec, options=dict(options))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", opskip.NothingSkippedWarning)
            logits = model(**inputs).logits
        report = opskip.last_report()
        found.append(
            {
                "logits": logits,
                "flops": (report.flops_before, report.flops_after),
                "bytes": bytes_in_decoder(model, inputs),
                "said": [str(each.message) for each in said if each.category is opskip.NothingSkippedWarning],
            }
        )
    return found


def assert_equal_to_oracle(
    family: Member,
    folder: Path,
    processes: int,
    specs: tuple[str, ...],
    options: dict[str, Any],
    all_split: bool = True,
) -> list[dict[str, Any]]:
    """Every process gives the oracle's logits, and all the same; returns the findings of one, by schedule.

    ``all_split``: no part of a layer is whole on every process.
    """
    model, inputs = family.build(LAYERS), family.inputs(UNEVEN)
    model.save_pretrained(folder)
    shown = inputs["attention_mask"].bool()
    dense = model(**inputs).logits[shown]
    by_process = several(in_process, processes, family, folder, specs, options)
    for spec, found in zip(specs, zip(*by_process, strict=True), strict=True):
        with opskip.oracle(model, opskip.Schedule.from_spec(spec), visual_mask(inputs)):
            want = model(**inputs).logits[shown]
        assert spec == "none" or (want - dense).abs().max() > 1e-2
        alone = opskip.explain(model, inputs, spec)
        for each in found:
            torch.testing.assert_close(each["logits"][shown], want, rtol=1e-4, atol=1e-5)
            assert torch.equal(each["logits"], found[0]["logits"])
            assert (each["said"], each["bytes"]) == ([], found[0]["bytes"])
            if all_split:
                assert tuple(processes * flops for flops in each["flops"]) == (alone.flops_before, alone.flops_after)
    return by_process[0]


@pytest.mark.parametrize(
    ("name", "spec"),
    [("llava", "silent:1-2"), ("qwen2_5_vl", "attend:0 transform:2"), ("internvl", "silent@keep=0.4:1-2")],
)
def test_two_processes(name: str, spec: str, tmp_path: Path) -> None:
    (found,) = assert_equal_to_oracle(with_heads(name), tmp_path, 2, (spec,), EAGER)
    rows = with_heads(name).inputs(UNEVEN)["input_ids"].shape[1]
    assert found["bytes"]["all_reduce"] < 2 * LAYERS * 2 * rows * 32 * 4


def test_bytes_fall_with_the_rows(tmp_path: Path) -> None:
    """Each layer has two sums over processes; of skipped operators they are those of the kept rows."""
    dense, silent = assert_equal_to_oracle(with_heads("qwen3_vl"), tmp_path, 2, ("none", "silent:all"), EAGER)
    visual = visual_mask(with_heads("qwen3_vl").inputs(UNEVEN))
    rows, kept = visual.shape[1], int((~visual).sum(1).max())
    assert dense["bytes"] == {"all_reduce": 2 * LAYERS * 2 * rows * 32 * 4, "all_gather": 8}  # which code is run
    assert silent["bytes"] == {"all_reduce": 2 * LAYERS * 2 * kept * 32 * 4, "all_gather": 8 + 5 * 8}  # and the rows


def test_four_processes(tmp_path: Path) -> None:
    assert_equal_to_oracle(with_heads("qwen3_vl"), tmp_path, 4, ("silent@keep=0.4:1-2",), EAGER)


def test_experts(tmp_path: Path) -> None:
    """Each process has a part of each expert, and their sums take kept rows."""
    specs = ("none", "attend@keep=0.4:1-2")
    dense, attend = assert_equal_to_oracle(ZOO["glm4v_moe"], tmp_path, 2, specs, EAGER, all_split=False)
    assert attend["bytes"]["all_reduce"] < dense["bytes"]["all_reduce"]


def test_experts_that_are_whole_on_every_process(tmp_path: Path) -> None:
    assert_equal_to_oracle(ZOO["qwen3_vl_moe"], tmp_path, 2, ("silent@keep=0.4:1-2",), EAGER, all_split=False)


def with_levels(rank: int, family: Family, folder: Path, schedule: opskip.Schedule) -> tuple[Any, tuple[int, ...], int]:
    model = opskip.compile(split_model(folder), schedule, options=dict(EAGER))
    return model(**family.inputs(UNEVEN)).logits, opskip.last_report().levels, len(opskip.last_report().skipped)


def test_prompts_have_the_same_level_in_all_processes(tmp_path: Path) -> None:
    family = with_heads("llava")
    model, inputs = family.build(LAYERS), family.inputs(UNEVEN)
    model.save_pretrained(tmp_path)
    schedule = leveled("none", "silent@keep=0.25:1-2", threshold=1000.0, num_layers=LAYERS)
    with opskip.oracle(model, schedule, visual_mask(inputs)):
        want = model(**inputs).logits
    shown = inputs["attention_mask"].bool()
    for logits, levels, skipped in several(with_levels, 2, family, tmp_path, schedule):
        torch.testing.assert_close(logits[shown], want[shown], rtol=1e-4, atol=1e-5)
        assert (levels, skipped) == ((1, 1), 4)


def without_image(rank: int, family: Family, folder: Path, prefill_only: bool, first: bool) -> str:
    """The second process gets no image, before anything is compiled or after all is; then all get the same again."""
    model = opskip.compile(split_model(folder), "silent:1-2", prefill_only=prefill_only, options=dict(EAGER))
    image, text = family.inputs(UNEVEN), family.inputs(((9,), (7,)))
    if not first:
        model(**image)
        model(**text)
    with pytest.raises(RuntimeError) as failed:
        model(**(text if rank else image))
    skipped = model(**image).logits
    opskip.remove(model)
    assert (skipped - model(**image).logits).abs().max() > 1e-3
    return str(failed.value)


@pytest.mark.parametrize(("prefill_only", "first"), [(False, False), (True, True)])
def test_one_process_gets_no_image(prefill_only: bool, first: bool, tmp_path: Path) -> None:
    """All of them raise at once, and go on with the next prompt."""
    family = with_heads("llava")
    family.build(LAYERS).save_pretrained(tmp_path)
    for said in several(without_image, 2, family, tmp_path, prefill_only, first, patience=60):
        assert said == agreement.OTHER_CODE


def counted(rank: int, family: Family, folder: Path) -> tuple[Any, Any, int]:
    """The first process counts FLOPs, and compiles for it alone."""
    model, inputs = split_model(folder), family.inputs(UNEVEN)
    opskip.compile(model, "silent:1-2", options=dict(EAGER))
    plain = model(**inputs).logits
    with FlopCounterMode(display=False) if rank == 0 else nullcontext() as counter:
        return plain, model(**inputs).logits, counter.get_total_flops() if counter else 0


def test_one_process_counts_flops(tmp_path: Path) -> None:
    family = with_heads("llava")
    family.build(LAYERS).save_pretrained(tmp_path)
    for rank, (plain, again, flops) in enumerate(several(counted, 2, family, tmp_path, patience=60)):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5)
        assert (flops > 0) == (rank == 0)


NORMS = dict.fromkeys(
    [f"model.language_model.layers.*.{name}" for name in ("input_layernorm", "post_attention_layernorm")],
    "sequence_parallel",
)


def by_dtensors(
    rank: int, family: Family, folder: Path, plan: dict[str, str] | None, gradients: bool
) -> tuple[Any, str, list[str]]:
    model = opskip.compile(split_model(folder, plan), "silent:1", options=dict(EAGER))
    with torch.set_grad_enabled(gradients), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", opskip.NothingSkippedWarning)
        logits = model(**family.inputs(UNEVEN)).logits.detach()
    return logits, opskip.last_report().reason, [str(each.message) for each in said]


@pytest.mark.parametrize(
    ("plan", "gradients", "told"),
    [(None, True, "torch.no_grad(), as generate() does"), (NORMS, False, "sequence_parallel")],
    ids=["gradients", "the sequence style of transformers"],
)
def test_where_transformers_computes_with_dtensors_it_is_dense_and_says_why(
    plan: dict[str, str] | None, gradients: bool, told: str, tmp_path: Path
) -> None:
    family = with_heads("llava")
    model = family.build(2)
    model.save_pretrained(tmp_path)
    want = model(**family.inputs(UNEVEN)).logits
    for logits, reason, said in several(by_dtensors, 2, family, tmp_path, plan, gradients):
        torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-5)
        assert reason == SPREAD.reason
        assert any(told in text for text in said)


def refused(rank: int, family: Family, folder: Path) -> tuple[str, str]:
    model, inputs = split_model(folder), family.inputs()
    with pytest.raises(opskip.OptionError) as calibrating:
        opskip.calibrate(model, [inputs] * 4, 0.3)
    schedule = opskip.Schedule.from_spec("silent@keep=0.5:1")
    with pytest.raises(opskip.OpSkipError) as asking, opskip.oracle(model, schedule, visual_mask(inputs)):
        pass
    return str(calibrating.value), str(asking.value)


def test_what_needs_the_whole_model_is_refused(tmp_path: Path) -> None:
    """Calibration gives each process samples of its own, and the oracle would see the heads of one process."""
    family = with_heads("llava")
    family.build(2).save_pretrained(tmp_path)
    for calibrating, asking in several(refused, 2, family, tmp_path):
        assert "split among processes" in calibrating
        assert "told by all heads" in asking


def test_every_family_has_a_plan_for_its_layers() -> None:
    plans = {name: opskip.tensor_parallel_plan(with_heads(name).config(2)) for name in FAMILIES}
    assert {name for name, plan in plans.items() if plan == "auto"} == {"llava", "qwen2_5_vl", "internvl"}
    experts = opskip.tensor_parallel_plan(transformers.Qwen3VLMoeConfig())
    assert set(experts.values()) == {"replicate"}
    assert plans["qwen3_vl"]["model.language_model.layers.*.mlp.down_proj"] == "rowwise"
    with pytest.raises(opskip.OpSkipError, match="no plan for the decoder layers of 'blip-2'"):
        opskip.tensor_parallel_plan(transformers.Blip2Config())


@pytest.mark.inductor
def test_inductor(tmp_path: Path) -> None:
    assert_equal_to_oracle(with_heads("llava"), tmp_path, 2, ("silent@keep=0.4:1-2",), {})
