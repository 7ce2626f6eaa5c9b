"""Calibration and diagnosis of rows of audio: prompts that processors have made, in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import opskip_compile as opskip
from opskip_compile.errors import OpSkipError, OptionError
from tests.helpers.audio import AUDIO, build_family, omni_inputs

FAMILY, ROWS = "qwen2_5_omni_thinker", 8
PARTS = [(3, "image", 2, "audio", 4), (2, "audio", 3), (4, "audio", 1, "image", 2)]
SAMPLES = [omni_inputs(ROWS, [parts], seed) for seed, parts in enumerate(PARTS)]
QUICK: dict[str, Any] = {"answer_tokens": 1, "controls": False, "stability": False, "whole_front": False, "shares": ()}

pytestmark = pytest.mark.usefixtures("fresh")


def test_calibrate() -> None:
    """The schedule means audio, and costs are counted for its rows."""
    model = build_family(FAMILY, 2)
    result = opskip.calibrate(model, SAMPLES, 0.1, modalities="audio", **QUICK)
    assert result.schedule.modalities == ("audio",)
    assert not result.schedule.is_empty
    assert all(choice.schedule.modalities == ("audio",) for choice in result.front)
    assert result.schedule.provenance["visual_rows"] == ROWS
    inputs = SAMPLES[0]
    with torch.no_grad():
        with opskip.oracle(model, result.schedule, inputs["input_ids"] == AUDIO):
            want = model(**inputs).logits
        opskip.compile(model, result.schedule, options={"lower": "eager"})
        got = model(**inputs).logits
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_diagnose_tells_modalities_apart() -> None:
    model = build_family(FAMILY, 2)
    found = {
        meant: [
            layer.of("layer").update
            for layer in opskip.diagnose(model, SAMPLES, modalities=meant, answer_tokens=1).rows
        ]
        for meant in ("audio", "all")
    }
    assert found["audio"] != found["all"]


@pytest.mark.parametrize(
    ("modalities", "error", "message"),
    [
        ("sound", OptionError, "modalities: expected one of image, video, audio"),
        ("image", OpSkipError, r"samples\[1\]: the prompt has no rows of image"),
        (("image", "video"), OpSkipError, r"samples\[1\]: the prompt has no visual rows"),
    ],
)
def test_what_is_refused(modalities: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        opskip.calibrate(build_family(FAMILY, 2), SAMPLES, 0.1, modalities=modalities, **QUICK)
