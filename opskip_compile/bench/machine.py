"""What figures depend on: the device, the machine and the versions."""

from __future__ import annotations

import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

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


def processor() -> str:
    """Name, family and model of the CPU where the system tells them; else what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in known:
        return platform.processor()
    return f"{known['model name']}, family {known.get('cpu family')}, model {known.get('model')}"


def environment(device: str, dtype: str) -> dict[str, Any]:
    """The command, the machine and the versions, for a file of figures."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": device,
        "machine": platform.machine(),
        "processor": processor(),
        "dtype": dtype,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
