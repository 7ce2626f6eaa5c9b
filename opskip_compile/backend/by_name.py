"""What Dynamo loads for ``torch.compile(backend="opskip")``: the entry point.

It is an attribute that is made on demand, so that the use of the backend is noticed before anything is traced, and
importing this module changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opskip_compile.backend import capture
from opskip_compile.backend.entry import opskip as backend


def __getattr__(name: str) -> Callable[..., Any]:
    if name != "opskip":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    capture.install()
    return backend
