"""The device and the floating point type that a model is to run in."""

from __future__ import annotations

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
