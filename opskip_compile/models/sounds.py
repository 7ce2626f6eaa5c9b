"""Sounds from WAV files: what a line of a file names as its audio, read with Python's own ``wave``."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opskip_compile.errors import OpSkipError, in_one_line
from opskip_compile.models.downloads import without_payload
from opskip_compile.models.images import Source, stored

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # by bytes of a value


@dataclass(frozen=True)
class Sound:
    """One sound, of one channel.

    Attributes:
        values: `numpy.ndarray`, float32 ``(values,)``, from -1 to 1.
        rate: values a second.
        name: for messages.
    """

    values: Any
    rate: int
    name: str


def load_sound(source: Source) -> Sound:
    """The sound in a WAV file of whole numbers (PCM) of 8, 16, 24 or 32 bits; channels become one, their mean.

    Nothing is resampled.

    Args:
        source: a path, an http(s) URL or a data URI.

    Raises:
        OpSkipError: it can't be read, is of another format, cut off or empty.
    """
    shown = without_payload(source)
    try:
        file = stored(source)
        with wave.open(io.BytesIO(file.read_bytes()) if isinstance(file, Path) else file, "rb") as content:
            frames, channels, width = content.getnframes(), content.getnchannels(), content.getsampwidth()
            rate, data = content.getframerate(), content.readframes(frames)
    except OSError as error:
        raise OpSkipError(f"cannot read the sound {shown}: {error.strerror or in_one_line(error)}") from error
    except (wave.Error, EOFError) as error:
        why = str(error) or "it ends too early"
        raise OpSkipError(f"cannot read the sound {shown}: {why}; WAV files of whole numbers (PCM) are read") from error
    if len(data) != frames * channels * width or not data:
        raise OpSkipError(f"cannot read the sound {shown}: {'it is cut off' if data else 'it is empty'}")
    if width not in (*_WHOLE, 3):
        raise OpSkipError(f"cannot read the sound {shown}: {8 * width} bits a value; 8, 16, 24 and 32 are read")
    return Sound(_values(data, width).reshape(frames, channels).mean(1).numpy(), rate, shown)


def _values(data: bytes, width: int) -> Tensor:
    """float32, from -1 to 1; of 8 bits a file has 0 to 255, of more bits signed numbers."""
    if width == 3:
        low, middle, high = torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(-1, 3).int().unbind(1)
        return ((high << 24) + (middle << 16) + (low << 8)).float() / 2**31
    values = torch.frombuffer(bytearray(data), dtype=_WHOLE[width]).float()
    return values / 128 - 1 if width == 1 else values / 2 ** (8 * width - 1)
