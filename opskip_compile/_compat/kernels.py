"""Which kernels for products of matrices this torch and this processor have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

import torch


@cache
def onednn_linear() -> Callable[..., Any] | None:
    """oneDNN's ``linear`` for float32 on a CPU, with an operation that it may end with.

    None where torch was built without it.
    """
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    found = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if available else None
    return None if found is None else cast(Callable[..., Any], found.default)


def check_on_device(condition: torch.Tensor, message: str) -> None:
    """Raise unless ``condition``, bool ``()``, holds. A GPU finds out when it gets there, and nobody waits for it."""
    torch._assert_async(condition, message)


@cache
def blas_is_slow() -> bool:
    """True where products of matrices run in MKL on an AMD processor with AVX-512: half the rate of oneDNN.

    ``torch.cpu`` does not name the vendor, but SSE4a is an extension that AMD's processors alone have.
    """
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    mkl: Callable[[], bool] = torch.backends.mkl.is_available
    return bool(mkl() and capabilities.get("sse4a") and capabilities.get("avx512_f"))
