"""What figures depend on: the device, the machine and the versions. Stands in every file of figures."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


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


def command() -> str:
    """The command line of this process as it would be typed: a module is ``python -m its.name``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])


def environment(device: str, dtype: str) -> dict[str, Any]:
    """The command, the date, the machine and the versions, for a file of figures."""
    return {
        "command": command(),
        "date": datetime.date.today().isoformat(),
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
