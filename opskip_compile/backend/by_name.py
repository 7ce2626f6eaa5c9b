"""What Dynamo loads for ``torch.compile(backend="opskip")``: the entry point.

Its attribute is made on demand, so that the use of the backend is noticed before anything is traced, and importing this
module changes nothing.
"""

from __future__ import annotations

from opskip_compile import _compat
from opskip_compile.backend import capture
from opskip_compile.backend.entry import opskip as backend


def __getattr__(name: str) -> None:
    if name != "opskip":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    capture.install()
    _compat.register_backend("opskip", backend)
