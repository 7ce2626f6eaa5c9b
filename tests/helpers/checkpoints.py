"""A folder with a small LLaVA, as one downloads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from opskip_compile.models import tiny

TEMPLATE = (
    "{% for part in messages[0]['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}user {{ part['text'] }} answer{% endif %}{% endfor %}"
)


def make_checkpoint(folder: Path, template: str | None = None) -> Path:
    """A LLaVA folder as one downloads it: config, weights, tokenizer, image processor."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<pad>", "<unk>", "<bos>", "what", "is", "this", "user", "answer"]
    table = {f"word{i}": i for i in range(tiny.VOCAB) if i >= len(words) and i != tiny.IMAGE}
    table.update({word: i for i, word in enumerate(words)}, **{"<image>": tiny.IMAGE})
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=["<image>"]
    )
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    tiny.FAMILIES["llava"].build(2, torch.bfloat16).save_pretrained(folder)
    return folder
