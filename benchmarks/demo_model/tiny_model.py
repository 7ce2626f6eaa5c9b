"""The demo model before training: tokenizer, image processor and configuration.

Everything is a stock transformers class at a small size. The vision tower has a single narrow block on
purpose, so that the decoder has visual work to do and skipping it can be felt.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from opskip_compile.models.packaged.model import IMAGE_PAD, VISION_END, VISION_START, DemoProcessor

IMAGE_SIZE = 64
PATCH = 4
MERGE = 2
TEMPORAL = 2
VISUAL_TOKENS = (IMAGE_SIZE // PATCH // MERGE) ** 2
VIDEO_PAD = "<|video_pad|>"
PAD, BOS, EOS, UNK = "<|pad|>", "<|bos|>", "<|eos|>", "<|unk|>"
SPECIAL = (PAD, BOS, EOS, UNK, VISION_START, IMAGE_PAD, VIDEO_PAD, VISION_END)


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A lower-case word-level tokenizer over the words of `texts`; punctuation is a token of its own."""
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[VISION_START, IMAGE_PAD, VIDEO_PAD, VISION_END],
        padding_side="left",
    )


def build_processor(texts: Iterable[str]) -> DemoProcessor:
    """The tokenizer over `texts` with an image processor that maps every square image to 64 visual tokens."""
    pixels = IMAGE_SIZE * IMAGE_SIZE
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": pixels, "longest_edge": pixels},
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=TEMPORAL,
    )
    return DemoProcessor(build_tokenizer(texts), images)


def build_config(processor: DemoProcessor, layers: int = 8, width: int = 192) -> Qwen3VLConfig:
    """Eight decoder layers of width 192 (six query heads, two key-value heads) over a one-block tower."""
    heads = width // 32
    tokenizer = processor.tokenizer
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": width * 8 // 3,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(heads // 3, 1),
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "out_hidden_size": width,
            "num_position_embeddings": (IMAGE_SIZE // PATCH) ** 2,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=processor.token_id(IMAGE_PAD),
        video_token_id=processor.token_id(VIDEO_PAD),
        vision_start_token_id=processor.token_id(VISION_START),
        vision_end_token_id=processor.token_id(VISION_END),
    )


def build_model(processor: DemoProcessor) -> Qwen3VLForConditionalGeneration:
    """A freshly initialised model from the current torch seed."""
    return Qwen3VLForConditionalGeneration(build_config(processor))
