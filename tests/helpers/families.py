"""The tiny models of the package under the names that tests use; see `opskip_compile.models.tiny`."""

from __future__ import annotations

from opskip_compile.models.tiny import (
    FAMILIES,
    IMAGE,
    ONE_IMAGE,
    ROWS_PER_IMAGE,
    UNEVEN,
    VISION_END,
    VISION_START,
    VOCAB,
    Family,
    visual_mask,
)
from opskip_compile.models.tiny import QWEN_TOKENS as _QWEN_TOKENS
from opskip_compile.models.tiny import QWEN_VISION as _QWEN_VISION
from opskip_compile.models.tiny import rope as _rope
from opskip_compile.models.tiny import text_config as _text

__all__ = [
    "FAMILIES",
    "IMAGE",
    "ONE_IMAGE",
    "ROWS_PER_IMAGE",
    "UNEVEN",
    "VISION_END",
    "VISION_START",
    "VOCAB",
    "_QWEN_TOKENS",
    "_QWEN_VISION",
    "Family",
    "_rope",
    "_text",
    "visual_mask",
]
