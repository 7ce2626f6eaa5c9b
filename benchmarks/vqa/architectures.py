"""From a configuration file to a stock transformers model with its tokenizer and image processor.

The three architectures differ in how an image enters a prompt: which tokens stand around its 144 placeholders, how
their positions are counted, and how its pixels are laid out. Everything else of the recipe is the same for all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from benchmarks.vqa.asking import question_words
from benchmarks.vqa.base import CANVAS
from benchmarks.vqa.facts import CHARACTERS, SIDE

CONFIGS = Path(__file__).parent / "configs"
PAD, BOS, EOS, UNK = "<|pad|>", "<|bos|>", "<|eos|>", "<|unk|>"
ROWS = SIDE * SIDE
MEAN, DEVIATION = 0.8, 0.3  # pale canvases: so that ink stands out from a background near zero


@dataclass(frozen=True, slots=True)
class Family:
    """What tells an architecture's prompts from another's."""

    model: str
    config: str
    before: tuple[str, ...]  # tokens around the placeholders of an image
    image: str
    after: tuple[str, ...]
    two_axes: bool = False  # whether the rows of an image count their positions by row and column


FAMILIES = {
    "qwen3_vl": Family(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        ("<|vision_start|>",),
        "<|image_pad|>",
        ("<|vision_end|>",),
        two_axes=True,
    ),
    "llava": Family("LlavaForConditionalGeneration", "LlavaConfig", (), "<image>", ()),
    "internvl": Family("InternVLForConditionalGeneration", "InternVLConfig", ("<img>",), "<IMG_CONTEXT>", ("</img>",)),
}
VIDEO = "<|video_pad|>"  # Qwen's configuration wants a token for it


@dataclass(frozen=True, slots=True)
class Kit:
    """An architecture with its tokenizer, image processor and settings."""

    family: Family
    tokenizer: Any
    image_processor: Any
    settings: dict[str, Any]

    def pixels(self, pictures: NDArray[np.uint8]) -> dict[str, Tensor]:
        """What the image processor returns for `(batch, 96, 96, 3)` pictures, several times faster."""
        pixels = (torch.from_numpy(pictures).float() / 255 - MEAN) / DEVIATION
        if self.family.two_axes:
            return patches(pixels, self.settings["vision_config"])
        return {"pixel_values": pixels.permute(0, 3, 1, 2).contiguous()}

    def ids(self, *tokens: str) -> list[int]:
        """The ids of tokens that the vocabulary is known to have."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        return [vocabulary[token] for token in tokens]

    def block(self) -> list[int]:
        """The token ids of one image in a prompt."""
        return self.ids(*self.family.before, *[self.family.image] * ROWS, *self.family.after)

    def question(self, text: str) -> list[int]:
        """The token ids of a question."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer(self, text: str, spelled: bool) -> list[int]:
        """The token ids of an answer and the end; a spelled one is letters even where the word is a token."""
        if spelled:
            return self.ids(text[0], *(f"##{letter}" for letter in text[1:]), EOS)
        return [*self.question(text), *self.ids(EOS)]

    def model(self) -> Any:
        """A freshly initialised model from the current torch seed."""
        return getattr(transformers, self.family.model)(self._config())

    def _config(self) -> Any:
        tokenizer = self.tokenizer
        text = {
            **self.settings["text_config"],
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        image = self.ids(self.family.image)[0]
        special: dict[str, Any] = {"image_token_id": image, "image_seq_length": ROWS}
        if self.family.model.startswith("Qwen"):
            start, video, end = self.ids(*self.family.before, VIDEO, *self.family.after)
            special = {"image_token_id": image, "video_token_id": video}
            special |= {"vision_start_token_id": start, "vision_end_token_id": end}
        elif self.family.model.startswith("Llava"):
            special = {"image_token_index": image, "image_seq_length": ROWS}
        given = {
            name: value
            for name, value in self.settings.items()
            if name not in ("architecture", "taps", "pointing_layer", "runs")
        }
        make = getattr(transformers, self.family.config)
        return make(**{**given, "text_config": text}, **special, tie_word_embeddings=False)


def load(name: str, folder: Path = CONFIGS) -> Kit:
    """The architecture of `configs/NAME.json`."""
    settings = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    family = FAMILIES[settings["architecture"]]
    return Kit(family, tokenizer(family), image_processor(family, settings["vision_config"]), settings)


def image_processor(family: Family, vision: dict[str, Any]) -> Any:
    """The image processor of the architecture, for images that have the right size already."""
    common = {"image_mean": [MEAN] * 3, "image_std": [DEVIATION] * 3}
    if family.two_axes:
        return transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": CANVAS * CANVAS, "longest_edge": CANVAS * CANVAS},
            patch_size=vision["patch_size"],
            merge_size=vision["spatial_merge_size"],
            temporal_patch_size=vision["temporal_patch_size"],
            **common,
        )
    size = {"height": CANVAS, "width": CANVAS}
    if family.model.startswith("InternVL"):
        return transformers.GotOcr2ImageProcessorPil(size=size, crop_to_patches=False, **common)
    return transformers.SiglipImageProcessorPil(size=size, **common)


def tokenizer(family: Family) -> Any:
    """Words of questions and closed answers are tokens; any other word falls apart into its letters."""
    special = [PAD, BOS, EOS, UNK, *family.before, family.image, *([VIDEO] if family.two_axes else []), *family.after]
    tokens = dict.fromkeys([*special, *question_words(), *CHARACTERS, *(f"##{letter}" for letter in CHARACTERS)])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    found = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK))
    found.normalizer = normalizers.Lowercase()
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=found,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=special[4:],
        padding_side="left",
    )


def patches(pixels: Tensor, vision: dict[str, Any]) -> dict[str, Tensor]:
    """What Qwen's image processor returns for normalised `(batch, 96, 96, 3)` pixels, several times faster."""
    patch, merge = vision["patch_size"], vision["spatial_merge_size"]
    batch, height, width, channels = pixels.shape
    rows, columns = height // patch, width // patch
    blocks = pixels.reshape(batch, rows // merge, merge, patch, columns // merge, merge, patch, channels)
    blocks = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).unsqueeze(6)
    blocks = blocks.expand(*[-1] * 6, vision["temporal_patch_size"], -1, -1)
    return {
        "pixel_values": blocks.reshape(batch * rows * columns, -1),
        "image_grid_thw": torch.tensor([[1, rows, columns]]).repeat(batch, 1),
    }
