"""Built-in multimodal models of real transformers classes at small size, with random weights: nothing to download.

Their decoders are written exactly as the large checkpoints' are, so what the compiler finds in one of them, it finds in
a checkpoint of the family. Answers mean nothing; graphs, shapes and row sets do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from opskip_compile.errors import OptionError

IMAGE, VISION_START, VISION_END, VOCAB = 190, 192, 193, 200
ROWS_PER_IMAGE = 16
PATCH, MERGE = 4, 2  # pixels to a side of one patch, patches to a side of one visual row
# One element of a batch: numbers of text rows, with an image between two neighbours.
ONE_IMAGE: Sequence[Sequence[int]] = ((3, 5),)
UNEVEN: Sequence[Sequence[int]] = ((3, 5), (2, 4, 3))


@dataclass(frozen=True)
class Family:
    """A model class at small size. `grid`: pictures are given as flattened patches, as Qwen's are; else whole."""

    name: str
    title: str
    config: Callable[[int], Any]
    model: str  # the transformers class
    grid: bool
    side: int = 32

    def build(self, layers: int = 4, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model with the same random weights every time; norms and biases away from their neutral start.

        Raises:
            OptionError: ``layers`` is no positive integer.
        """
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
            raise OptionError(f"layers: expected an integer of at least 1, got {layers!r}")
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, self.model)(self.config(layers)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                elif "language_model" in name:
                    parameter.mul_(3)  # larger updates, so that a skipped operator shows
        return model.to(dtype)

    def inputs(
        self,
        layout: Sequence[Sequence[int]] = ONE_IMAGE,
        seed: int = 0,
        picture: Tensor | None = None,
        padding: str = "left",
    ) -> dict[str, Tensor]:
        """Keyword inputs of a batch.

        Args:
            layout: for each element its numbers of text rows, with an image of `ROWS_PER_IMAGE` rows between two.
            seed: of the random text and the random pictures.
            picture: float ``(3, side, side)``, see `pixels`; stands for every image. None: random pictures.
            padding: the side of shorter elements that is filled up, ``"left"`` or ``"right"``.

        Returns:
            ``input_ids`` and ``attention_mask`` int64 ``(batch, sequence)``, and what the class takes for images.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = [self._element(parts, generator) for parts in layout]
        inputs = padded(rows, padding)
        ids, images = inputs["input_ids"], sum(len(parts) - 1 for parts in layout)
        if not images:
            return inputs
        if self.grid:
            inputs["pixel_values"] = torch.randn(images * 4 * ROWS_PER_IMAGE, 3 * 2 * PATCH**2, generator=generator)
            inputs["image_grid_thw"] = torch.tensor([[1, self.side // PATCH, self.side // PATCH]] * images)
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        else:
            inputs["pixel_values"] = torch.randn(images, 3, self.side, self.side, generator=generator)
        if picture is not None:
            inputs["pixel_values"] = (
                patches(picture).repeat(images, 1) if self.grid else picture.repeat(images, 1, 1, 1)
            )
        return inputs

    def _element(self, parts: Sequence[int], generator: torch.Generator) -> list[int]:
        row: list[int] = []
        for i, text in enumerate(parts):
            if i:
                row += [VISION_START, *[IMAGE] * ROWS_PER_IMAGE, VISION_END] if self.grid else [IMAGE] * ROWS_PER_IMAGE
            row += torch.randint(3, 180, (text,), generator=generator).tolist()
        return row


def padded(rows: Sequence[list[int]], padding: str = "left") -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` int64 ``(batch, sequence)`` of elements of different length."""
    length = max(len(row) for row in rows)
    before = [length - len(row) if padding == "left" else 0 for row in rows]
    pairs = list(zip(before, rows, strict=True))
    ids = [[0] * n + row + [0] * (length - n - len(row)) for n, row in pairs]
    mask = [[0] * n + [1] * len(row) + [0] * (length - n - len(row)) for n, row in pairs]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def pixels(image: Any, side: int) -> Tensor:
    """A `PIL.Image` as float ``(3, side, side)`` from -1 to 1, for `Family.inputs`."""
    raw = image.convert("RGB").resize((side, side), 4).tobytes()  # 4 is PIL.Image.Resampling.BOX
    channels_last = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(side, side, 3)
    return channels_last.permute(2, 0, 1).float() / 127.5 - 1


def patches(picture: Tensor) -> Tensor:
    """``(3, side, side)`` as Qwen's flattened patches ``(patches, 3 * 2 * PATCH**2)``.

    Patches that are merged into one visual row follow each other; a still picture fills both frames of a patch.
    """
    side = picture.shape[-1] // (PATCH * MERGE)
    split = picture.view(3, side, MERGE, PATCH, side, MERGE, PATCH)
    ordered = split.permute(1, 4, 2, 5, 0, 3, 6)  # rows, columns, then inside a merge, then channel and pixels
    frames = ordered.unsqueeze(5).expand(-1, -1, -1, -1, -1, 2, -1, -1)
    return frames.reshape(side * side * MERGE**2, 3 * 2 * PATCH**2)


def visual_mask(inputs: dict[str, Tensor]) -> Tensor:
    """Bool ``(batch, sequence)``."""
    return inputs["input_ids"] == IMAGE


def text_config(layers: int, **fields: object) -> dict[str, object]:
    """The decoder that all families share, with a family's own fields."""
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
        **fields,
    }


QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": 191,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def rope(**fields: object) -> dict[str, object]:
    """Rotary parameters of a Qwen decoder with heads of width 8."""
    return {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4, **fields}


def _qwen3(layers: int) -> Any:
    return transformers.Qwen3VLConfig(
        text_config=text_config(layers, head_dim=8, rope_parameters=rope(mrope_interleaved=True)),
        vision_config={**QWEN_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        **QWEN_TOKENS,
    )


def _qwen25(layers: int) -> Any:
    vision = {**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [0]}
    text = text_config(layers, rope_parameters=rope())
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS)


def _llava(layers: int) -> Any:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": PATCH,
        "projection_dim": 32,
    }
    text = text_config(layers, model_type="llama", head_dim=8)
    return transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)


def _internvl(layers: int) -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": [32, 32],
        "patch_size": [PATCH, PATCH],
    }
    return transformers.InternVLConfig(
        text_config=text_config(layers, model_type="qwen2"),
        vision_config=vision,
        image_token_id=IMAGE,
        image_seq_length=ROWS_PER_IMAGE,
    )


FAMILIES = {
    family.name: family
    for family in (
        Family("qwen3_vl", "Qwen3-VL", _qwen3, "Qwen3VLForConditionalGeneration", grid=True),
        Family("qwen2_5_vl", "Qwen2.5-VL", _qwen25, "Qwen2_5_VLForConditionalGeneration", grid=True),
        Family("llava", "LLaVA-1.5", _llava, "LlavaForConditionalGeneration", grid=False, side=16),
        Family("internvl", "InternVL", _internvl, "InternVLForConditionalGeneration", grid=False),
    )
}
