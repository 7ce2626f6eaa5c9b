"""Every family by its structure: all rows of prompt and answer against the oracle, whole steps and cut ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from opskip_compile.report.report import Report
from tests.vllm.asking import Asked, Reference, check, engine, model_of, picture, sampling
from tests.vllm.checkpoints import FAMILIES, build

SCHEDULE = "attend:0 transform:1 silent:2-3"
TEXTS = (("how many red circles are there ?", 1), ("is there a red circles what colour ?", 2), ("what colour ?", 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, tmp_path: Path) -> None:
    serve(family, tmp_path)


def serve(family: str, tmp_path: Path) -> Report:
    """Whatever a family has to show; returns what was skipped in it."""
    checkpoint = build(family, tmp_path)
    sizes, asked = checkpoint.sizes, []
    for seed, (text, count) in enumerate((*TEXTS, TEXTS[0])):
        images = [picture(*sizes[(seed + i) % len(sizes)], seed + i) for i in range(count)]
        asked.append(Asked(checkpoint.prompt(text, count), images))

    def inputs(images: Any, ids: Any) -> dict[str, Any]:
        named = checkpoint.inputs(images, ids[0].tolist())
        named.pop("input_ids")
        return named

    reference = Reference(checkpoint.model(), checkpoint.visual_ids, inputs)
    with engine(checkpoint.folder, SCHEDULE, max_num_batched_tokens=88, **_limits(family)) as llm:
        outputs = llm.generate([one.request for one in asked], sampling(), use_tqdm=False)
        report = model_of(llm).opskip.report
    assert check(outputs, asked, reference, SCHEDULE) > 0
    assert len(report.skipped) == 6
    assert not report.misses and not report.stops and not report.remaining()
    return report


def test_experts_as_vllm_calls_them_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one opaque operation, which has as many FLOPs; the kernels under it are those of a CPU."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    usual = serve("qwen3_vl_moe", tmp_path / "usual")
    monkeypatch.setattr(MoERunner, "_select_forward", lambda runner: torch.ops.vllm.moe_forward)
    other = serve("qwen3_vl_moe", tmp_path / "other")
    for one, two in zip(usual.operators, other.operators, strict=True):
        assert (one.flops_before, one.flops_after) == (two.flops_before, two.flops_after)
        assert one.flops_before is not None


def _limits(family: str) -> dict[str, Any]:
    video = {} if family in ("llava", "smolvlm", "idefics3", "mistral3") else {"video": 0}
    return {"limit_mm_per_prompt": {"image": 2, **video}}
