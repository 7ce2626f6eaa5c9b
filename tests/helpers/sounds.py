"""A folder with a small Qwen2-Audio, as one downloads it, and WAV files."""

from __future__ import annotations

import math
import wave
from pathlib import Path

import pytest
import transformers

from tests.helpers.families import IMAGE
from tests.helpers.support.zoo import ZOO

RATE, MOST = 16_000, 1.0  # values a second, seconds of one sound
ROWS = 8  # of a sound of one second
TEMPLATE = (
    "{% for part in messages[0]['content'] %}"
    "{% if part['type'] == 'audio' %}<|AUDIO|> {% else %}user {{ part['text'] }} answer{% endif %}{% endfor %}"
)


def make_audio_checkpoint(folder: Path, layers: int = 4) -> Path:
    """Config, weights, tokenizer and feature extractor of a Qwen2-Audio with random weights."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<pad>", "<unk>", "<bos>", "what", "is", "this", "user", "answer"]
    table = {f"word{i}": i for i in range(200) if i >= len(words) and i != IMAGE}
    table.update({word: i for i, word in enumerate(words)}, **{"<|AUDIO|>": IMAGE})
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=["<|AUDIO|>"]
    )
    model = ZOO["qwen2_audio"].build(layers)
    features = transformers.WhisperFeatureExtractor(
        feature_size=model.config.audio_config.num_mel_bins, sampling_rate=RATE, hop_length=500, chunk_length=int(MOST)
    )
    transformers.Qwen2AudioProcessor(features, tokenizer, chat_template=TEMPLATE).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def write_wav(
    path: Path, pitch: float, seconds: float = MOST, rate: int = RATE, width: int = 2, channels: int = 1
) -> None:
    """A tone at half of the loudest; a second channel is silent."""
    count, half = round(seconds * rate), 1 << 8 * width - 2
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        for i in range(count):
            value = round(half * math.sin(2 * math.pi * pitch * i / rate))
            silent = 128 if width == 1 else 0
            for each in (value + silent, silent)[:channels]:
                file.writeframesraw(each.to_bytes(width, "little", signed=width > 1))
