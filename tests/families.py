"""Small random-weight models of real transformers classes, and prompts with images for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

IMAGE, VISION_START, VISION_END, VOCAB = 190, 192, 193, 200
ROWS_PER_IMAGE = 16
# One element of a batch: numbers of text rows, with an image between two neighbours.
ONE_IMAGE: Sequence[Sequence[int]] = ((3, 5),)
UNEVEN: Sequence[Sequence[int]] = ((3, 5), (2, 4, 3))


@dataclass(frozen=True)
class Family:
    """A model class at small size."""

    name: str
    config: Callable[[int], object]
    model: Callable[[object], nn.Module]
    grid: bool  # Qwen: patches flattened, with a grid; else one picture per image
    side: int = 32

    def build(self, layers: int = 4, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model with the same random weights every time; norms and biases away from their neutral start."""
        torch.manual_seed(0)
        model = self.model(self.config(layers)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                elif "language_model" in name:
                    parameter.mul_(3)  # larger updates, so that a skipped operator shows
        return model.to(dtype)

    def inputs(self, layout: Sequence[Sequence[int]] = ONE_IMAGE, seed: int = 0) -> dict[str, Tensor]:
        """Keyword inputs of a batch, padded on the left."""
        generator = torch.Generator().manual_seed(seed)
        rows = [self._element(parts, generator) for parts in layout]
        length = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        images = sum(len(parts) - 1 for parts in layout)
        found = {"input_ids": ids, "attention_mask": mask}
        if not images:
            return found
        if self.grid:
            found["pixel_values"] = torch.randn(images * 4 * ROWS_PER_IMAGE, 3 * 2 * 16, generator=generator)
            found["image_grid_thw"] = torch.tensor([[1, 8, 8]] * images)
            found["mm_token_type_ids"] = (ids == IMAGE).int()
        else:
            found["pixel_values"] = torch.randn(images, 3, self.side, self.side, generator=generator)
        return found

    def _element(self, parts: Sequence[int], generator: torch.Generator) -> list[int]:
        row: list[int] = []
        for i, text in enumerate(parts):
            if i:
                row += [VISION_START, *[IMAGE] * ROWS_PER_IMAGE, VISION_END] if self.grid else [IMAGE] * ROWS_PER_IMAGE
            row += torch.randint(3, 180, (text,), generator=generator).tolist()
        return row


def visual_mask(inputs: dict[str, Tensor]) -> Tensor:
    """Bool ``(batch, sequence)``."""
    return inputs["input_ids"] == IMAGE


def _text(layers: int, **more: object) -> dict[str, object]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **more,
    }


_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
_QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": 191,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def _rope(**more: object) -> dict[str, object]:
    return {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4, **more}


def _qwen3(layers: int) -> object:
    return Qwen3VLConfig(
        text_config=_text(layers, head_dim=8, rope_parameters=_rope(mrope_interleaved=True)),
        vision_config={**_QWEN_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        **_QWEN_TOKENS,
    )


def _qwen25(layers: int) -> object:
    vision = {**_QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [0]}
    return Qwen2_5_VLConfig(text_config=_text(layers, rope_parameters=_rope()), vision_config=vision, **_QWEN_TOKENS)


def _llava(layers: int) -> object:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        "projection_dim": 32,
    }
    text = _text(layers, model_type="llama", head_dim=8)
    return LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)


def _internvl(layers: int) -> object:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": [32, 32],
        "patch_size": [4, 4],
    }
    text = _text(layers, model_type="qwen2")
    return InternVLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, image_seq_length=ROWS_PER_IMAGE)


FAMILIES = {
    family.name: family
    for family in (
        Family("qwen3_vl", _qwen3, Qwen3VLForConditionalGeneration, grid=True),
        Family("qwen2_5_vl", _qwen25, Qwen2_5_VLForConditionalGeneration, grid=True),
        Family("llava", _llava, LlavaForConditionalGeneration, grid=False, side=16),
        Family("internvl", _internvl, InternVLForConditionalGeneration, grid=False),
    )
}
