"""Folders with the processors of several families, as one downloads them: their video processors need torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from opskip_compile.models import tiny

WORDS = ("<pad>", "<unk>", "<bos>", "what", "is", "this", "user", "answer")
QWEN = {190: "<|image_pad|>", 191: "<|video_pad|>", 192: "<|vision_start|>", 193: "<|vision_end|>"}
IMAGE_AND_VIDEO = {"image_token": "<image>", "video_token": "<video>"}
SMALL_GRID = {"size": {"shortest_edge": 32 * 32, "longest_edge": 32 * 32}, "patch_size": tiny.PATCH}


@dataclass(frozen=True)
class Folder:
    """What a family's folder holds.

    Attributes:
        processor: class of transformers; so is ``images``, the image processor's.
        image: the word that stands for rows of an image.
        words: special words by their id.
        named: special words by the name that the tokenizer has for them.
        image_settings, settings: of the image processor, of the processor.
    """

    processor: str
    images: str
    image: str
    words: Mapping[int, str]
    named: Mapping[str, str] = field(default_factory=dict)
    image_settings: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None


def _named(image: str, **named: str) -> dict[str, Any]:
    words = dict(enumerate(dict.fromkeys(named.values()), start=tiny.IMAGE))
    return {"image": image, "words": words, "named": named}


FOLDERS = {
    "qwen2_vl": Folder("Qwen2VLProcessor", "Qwen2VLImageProcessor", QWEN[190], QWEN, {}, SMALL_GRID),
    "qwen2_5_vl": Folder("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", QWEN[190], QWEN, {}, SMALL_GRID),
    "qwen3_vl": Folder("Qwen3VLProcessor", "Qwen2VLImageProcessor", QWEN[190], QWEN, {}, SMALL_GRID),
    "internvl": Folder(
        "InternVLProcessor",
        "GotOcr2ImageProcessor",
        **_named(
            "<IMG_CONTEXT>",
            context_image_token="<IMG_CONTEXT>",
            start_image_token="<img>",
            end_image_token="</img>",
            video_token="<video>",
        ),
        image_settings={"size": {"height": 32, "width": 32}},
        settings={"image_seq_length": 16},
    ),
    "llava_onevision": Folder(
        "LlavaOnevisionProcessor",
        "LlavaOnevisionImageProcessor",
        **_named("<image>", **IMAGE_AND_VIDEO),
        image_settings={"size": {"height": 16, "width": 16}, "image_grid_pinpoints": [[16, 16], [32, 16]]},
        settings={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "glm4v": Folder(
        "Glm4vProcessor",
        "Glm4vImageProcessor",
        "<|image|>",
        {190: "<|image|>", 191: "<|video|>", 192: "<|begin_of_image|>", 193: "<|end_of_image|>"},
        {},
        {"size": {"shortest_edge": 2 * 32 * 32, "longest_edge": 2 * 32 * 32}, "patch_size": tiny.PATCH},
    ),
    "video_llama_3": Folder(
        "VideoLlama3Processor",
        "VideoLlama3ImageProcessor",
        **_named("<image>", **IMAGE_AND_VIDEO),
        image_settings={"patch_size": tiny.PATCH, "merge_size": tiny.MERGE, "min_pixels": 1024, "max_pixels": 1024},
    ),
    "video_llava": Folder(
        "VideoLlavaProcessor",
        "VideoLlavaImageProcessor",
        **_named("<image>", **IMAGE_AND_VIDEO),
        image_settings={"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
        settings={"patch_size": tiny.PATCH, "num_additional_image_tokens": 1},
    ),
}


def make_folder(folder: Path, family: str, template: str | None = None, **image_settings: Any) -> Path:
    """Tokenizer and image processor, named as torchvision's is, in the files that the hub has them in."""
    about = FOLDERS[family]
    words = {i: f"word{i}" for i in range(tiny.VOCAB)} | dict(enumerate(WORDS)) | dict(about.words)
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in words.items()}, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(about.words.values()),
        **({"extra_special_tokens": dict(about.named)} if about.named else {}),
    ).save_pretrained(folder)
    kind = getattr(transformers, about.images + "Pil", None) or getattr(transformers, about.images)
    kind(**{**about.image_settings, **image_settings}).save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    named = {"image_processor_type": about.images, "processor_class": about.processor}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    if about.settings is not None:
        settings = {**about.settings, "processor_class": about.processor}
        (folder / "processor_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
