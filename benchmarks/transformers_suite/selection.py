"""What is run: families, tests and the three runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

RUNS: dict[str, str | None] = {"plain": None, "none": "none", "late:0.5": "late:0.5"}
"""Each run with the schedule by which every model of it is compiled."""


@dataclass(frozen=True)
class Family:
    """One family: the folder of its tests, and the test class of its multimodal models."""

    folder: str
    title: str
    test_class: str

    @property
    def path(self) -> str:
        """Of the test file, in the folder that has ``tests``."""
        return f"tests/models/{self.folder}/test_modeling_{self.folder}.py"


FAMILIES = {
    family.folder: family
    for family in (
        Family("qwen3_vl", "Qwen3-VL", "Qwen3VLModelTest"),
        Family("qwen2_5_vl", "Qwen2.5-VL", "Qwen2_5_VLModelTest"),
        Family("llava", "LLaVA", "LlavaForConditionalGenerationModelTest"),
        Family("internvl", "InternVL", "InternVLModelTest"),
        Family("gemma3", "Gemma 3", "Gemma3Vision2TextModelTest"),
        Family("smolvlm", "SmolVLM", "SmolVLMForConditionalGenerationModelTest"),
        Family("mistral3", "Mistral 3", "Mistral3ModelTest"),
        Family("paligemma", "PaliGemma", "PaliGemmaForConditionalGenerationModelTest"),
        Family("glm4v", "GLM-4V", "Glm4vModelTest"),
    )
}

LEFT_OUT = {
    r"pipeline|deepspeed|onnx|executorch|peft|kernels|_fa[234]_|flash_att|multi_gpu|model_parallel": (
        "need a package or a device that is not there, and skip themselves"
    ),
    r"get_(audio|text|video|image)_features|rope_|vision_feature_layers": (
        "do not run the decoder, or run it without an image"
    ),
    r"sdpa_inference_(0[0-8]|[12][0-3]|1[4-9])_|search_1_same|use_reentrant|no_recompile_with_smaller": (
        "are another test that is run, at more precisions, paddings or settings"
    ),
}
"""Tests that are not run, by their names, and why."""


def selected(test: str) -> bool:
    """Whether the test of this name is run."""
    return not any(re.search(pattern, test) for pattern in LEFT_OUT)
