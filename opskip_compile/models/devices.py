"""The device and the floating point type that a model is to run in."""

from __future__ import annotations

import os

import torch

from opskip_compile.errors import OptionError

DTYPES = ("float32", "bfloat16", "float16")


def check_place(device: str, dtype: str) -> str:
    """The name of the device.

    Raises:
        OptionError: there is no such device here, or it is no floating point type that a decoder runs in.
    """
    if dtype not in DTYPES:
        raise OptionError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    try:
        kind = torch.device(device).type
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device: {device!r} can't be used: {str(error).splitlines()[0]}") from None
    return (
        torch.cuda.get_device_name(device) if kind == "cuda" else f"{kind.upper()}, {torch.get_num_threads()} threads"
    )


def usable_device(device: str | None, dtype: str | None = None) -> str:
    """The device; where none is given, a GPU if there is one. Of several GPUs, ``cuda`` is the one of this process.

    Raises:
        OptionError: as `check_place`.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if place == "cuda":
        place = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    check_place(place, dtype or "float32")
    return place
