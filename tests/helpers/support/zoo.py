"""The families of the support matrix: real config classes of transformers made small, and inputs with images.

One description of an image does for all of them: which tensors it takes, and how many visual rows it becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from opskip_compile.models.tiny import padded
from tests.helpers.families import FAMILIES, IMAGE, ONE_IMAGE, VISION_END, VISION_START
from tests.helpers.shrink import build
from tests.helpers.support.changes import CHANGES
from tests.helpers.support.forms import Member

Fields = Callable[[Tensor, Sequence[int]], dict[str, Tensor]]


@dataclass(frozen=True)
class Entry:
    """One family.

    Attributes:
        name: key of transformers' config mapping, or of an entry with `config`.
        title: for the table in `docs/support.md`.
        rows: visual rows of an image.
        image: name -> tensor of one image; a shape stands for random values of that shape, along whose first
            dimension images are joined.
        nested: images of each element in a dimension of their own, filled up with zeros, as Idefics takes them.
        fields: (token ids, images of each element) -> what the class takes besides.
        config: the key, if ``name`` is none.
    """

    name: str
    title: str
    rows: int
    image: Mapping[str, tuple[int, ...] | Tensor]
    nested: bool = False
    fields: Fields | None = field(default=None, repr=False)
    config: str = ""

    def build(self, layers: int = 4, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model with the same random weights every time."""
        model = build(self.config or self.name, layers, CHANGES.get(self.name))
        return model if dtype == torch.float32 else model.to(dtype)  # a cast to float32 would make complex buffers real

    def inputs(
        self, layout: Sequence[Sequence[int]] = ONE_IMAGE, seed: int = 0, padding: str = "left"
    ) -> dict[str, Tensor]:
        """A batch: numbers of text rows of each element, with an image between two."""
        generator = torch.Generator().manual_seed(seed)
        rows = [self._element(parts, generator) for parts in layout]
        counts = [len(parts) - 1 for parts in layout]
        found = padded(rows, padding)
        if any(counts):
            found |= self._images(counts, generator)
        if self.fields is not None:
            found |= self.fields(found["input_ids"], counts)
        return found

    def _element(self, parts: Sequence[int], generator: torch.Generator) -> list[int]:
        row: list[int] = []
        for i, text in enumerate(parts):
            if i:
                image = [IMAGE] * self.rows
                row += [VISION_START, *image, VISION_END] if "image_grid_thw" in self.image else image
            row += torch.randint(3, 180, (text,), generator=generator).tolist()
        return row

    def _images(self, counts: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, one in self.image.items():
            each = [
                one if isinstance(one, Tensor) else torch.randn(one, generator=generator) for _ in range(sum(counts))
            ]
            found[name] = torch.cat(each)
            if self.nested:
                by_element = torch.zeros(len(counts), max(counts), *found[name].shape[1:], dtype=found[name].dtype)
                by_element[torch.arange(max(counts)) < torch.tensor(counts)[:, None]] = found[name]
                found[name] = by_element
        return found


def kinds(ids: Tensor, counts: Sequence[int]) -> dict[str, Tensor]:
    """Text 0, image 1."""
    return {"mm_token_type_ids": (ids == IMAGE).int()}


def token_types(ids: Tensor, counts: Sequence[int]) -> dict[str, Tensor]:
    """Text 0, image 1, under the name that Gemma 3 knows."""
    return {"token_type_ids": (ids == IMAGE).long()}


def prefix_only(ids: Tensor, counts: Sequence[int]) -> dict[str, Tensor]:
    """All rows are PaliGemma's prefix."""
    return {"token_type_ids": torch.zeros_like(ids)}


def cross_attention(ids: Tensor, counts: Sequence[int]) -> dict[str, Tensor]:
    """Every row of Mllama reads every image."""
    return {"cross_attention_mask": torch.ones(*ids.shape, max(counts), 2, dtype=torch.long)} if any(counts) else {}


def decoder(ids: Tensor, counts: Sequence[int]) -> dict[str, Tensor]:
    """The decoder of an encoder-decoder starts with three tokens."""
    return {"decoder_input_ids": torch.tensor([[2, 3, 4]] * len(ids))}


def whole(side: int = 16, **more: Tensor) -> dict[str, tuple[int, ...] | Tensor]:
    return {"pixel_values": (1, 3, side, side), **more}


def sized(side: int) -> dict[str, tuple[int, ...] | Tensor]:
    return whole(side, image_sizes=torch.tensor([[side, side]]))


def grid(*patch: int, **more: Tensor) -> dict[str, tuple[int, ...] | Tensor]:
    return {"pixel_values": (64, *patch), "image_grid_thw": torch.tensor([[1, 8, 8]]), **more}


TILES = {"pixel_values": (1, 2, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
SIGLIP2 = {
    "pixel_values": (1, 16, 48),
    "spatial_shapes": torch.tensor([[4, 4]]),
    "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
}
MLLAMA = {
    "pixel_values": (1, 2, 3, 16, 16),
    "aspect_ratio_ids": torch.tensor([1]),
    "aspect_ratio_mask": torch.tensor([[1, 0]]),
}
GEMMA4 = {
    "pixel_values": (1, 64, 48),
    "image_position_ids": torch.cartesian_prod(torch.arange(8), torch.arange(8)).flip(-1)[None],
}
MOLMO2 = {
    "pixel_values": (1, 16, 48),
    "image_token_pooling": torch.arange(16)[:, None],
    "image_grids": torch.tensor([[4, 4, 0, 0]]),
}
PATCH = 3 * 2 * 4 * 4


def sound(mask: str = "", frames: int = 32) -> dict[str, tuple[int, ...] | Tensor]:
    """A spectrogram, with its mask where the class takes one."""
    masks: dict[str, Tensor] = {mask: torch.ones(1, frames, dtype=torch.long)} if mask else {}
    return {"input_features": (1, 16, frames), **masks}


GRANITE = {"input_features": (1, 15, 16), "input_features_mask": torch.ones(1, 3, dtype=torch.bool)}

ENTRIES = (
    Entry("qwen2_vl", "Qwen2-VL", 16, grid(PATCH), fields=kinds),
    Entry("qwen3_vl_moe", "Qwen3-VL-MoE", 16, grid(PATCH), fields=kinds),
    Entry("qwen3_5", "Qwen3.5", 16, grid(PATCH), fields=kinds),
    Entry("qwen3_5_moe", "Qwen3.5-MoE", 16, grid(PATCH), fields=kinds),
    Entry("llava_next", "LLaVA-NeXT", 36, TILES),
    Entry("llava_onevision", "LLaVA-OneVision", 36, TILES),
    Entry("llava_next_video", "LLaVA-NeXT-Video", 36, TILES),
    Entry("vipllava", "VipLLaVA", 16, whole()),
    Entry("video_llava", "Video-LLaVA", 16, {"pixel_values_images": (1, 3, 16, 16)}),
    Entry("pixtral", "Pixtral", 16, sized(16), config="llava"),
    Entry("mistral3", "Mistral 3", 16, sized(32)),
    Entry("gemma3", "Gemma 3", 16, whole(), fields=token_types),
    Entry("paligemma", "PaliGemma", 16, whole(), fields=prefix_only),
    Entry("smolvlm", "SmolVLM", 4, whole(), nested=True),
    Entry("idefics2", "Idefics2", 4, whole(), nested=True),
    Entry("idefics3", "Idefics3", 4, whole(), nested=True),
    Entry("glm4v", "GLM-4.1V", 16, grid(PATCH), fields=kinds),
    Entry("glm4v_moe", "GLM-4.5V", 16, grid(PATCH), fields=kinds),
    Entry("glm46v", "GLM-4.6V", 16, grid(PATCH), fields=kinds),
    Entry("aya_vision", "Aya Vision", 4, whole()),
    Entry("cohere2_vision", "Command A Vision", 4, whole()),
    Entry("aria", "Aria", 8, whole()),
    Entry("lfm2_vl", "LFM2-VL", 4, SIGLIP2),
    Entry("llama4", "Llama 4", 4, whole()),
    Entry("ovis2", "Ovis2", 16, whole()),
    Entry("got_ocr2", "GOT-OCR2", 4, whole(32)),
    Entry("janus", "Janus", 16, whole()),
    Entry("deepseek_vl", "DeepSeek-VL", 16, whole()),
    Entry("emu3", "Emu3", 72, sized(16)),
    Entry("paddleocr_vl", "PaddleOCR-VL", 16, grid(3, 4, 4), fields=kinds),
    Entry("video_llama_3", "VideoLLaMA 3", 16, grid(48, image_merge_sizes=torch.tensor([2])), fields=kinds),
    Entry("minimax_m3_vl", "MiniMax-M3-VL", 16, grid(PATCH), fields=kinds),
    Entry("kimi_k25", "Kimi K2.5", 16, grid(3, 4, 4), fields=kinds),
    Entry("ernie4_5_vl_moe", "ERNIE 4.5 VL", 16, grid(48), fields=kinds),
    Entry("exaone4_5", "EXAONE 4.5", 16, grid(PATCH), fields=kinds),
    Entry("blip-2", "BLIP-2", 16, whole()),
    Entry("mllama", "Llama 3.2 Vision (Mllama)", 1, MLLAMA, nested=True, fields=cross_attention),
    Entry("florence2", "Florence-2", 2, whole(32), fields=decoder),
    Entry("t5gemma2", "T5Gemma 2", 16, whole(), fields=decoder),
    Entry("gemma4", "Gemma 4", 16, GEMMA4, fields=kinds),
    Entry("gemma4_moe", "Gemma 4 (experts)", 16, GEMMA4, fields=kinds, config="gemma4"),
    Entry("gemma4_unified", "Gemma 4 (unified)", 64, GEMMA4, fields=kinds),
    Entry("qwen3_omni_moe_thinker", "Qwen3-Omni-MoE", 16, grid(PATCH)),
    Entry("molmo2", "Molmo 2", 16, MOLMO2, fields=kinds),
    Entry("hunyuan_vl", "HunYuan-VL", 22, grid(48), fields=kinds),
    Entry("glm_ocr", "GLM-OCR", 16, grid(PATCH), fields=kinds),
    Entry("qwen2_5_omni_thinker", "Qwen2.5-Omni", 16, grid(PATCH)),
    Entry("qwen2_audio", "Qwen2-Audio (audio)", 8, sound("feature_attention_mask")),
    Entry("voxtral", "Voxtral (audio)", 4, sound()),
    Entry("granite_speech", "Granite Speech (audio)", 3, GRANITE),
)
# Measured by tests/models/test_modalities.py alone.
MORE_OF_AUDIO = (
    Entry("audioflamingo3", "Audio Flamingo 3 (audio)", 8, sound("input_features_mask")),
    Entry("glmasr", "GLM-ASR (audio)", 4, sound("input_features_mask")),
)
ZOO: dict[str, Member] = {**FAMILIES, **{entry.name: entry for entry in ENTRIES}}
