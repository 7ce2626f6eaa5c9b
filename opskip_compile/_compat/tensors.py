"""Tensors: fake ones, subclasses, and which of them share memory."""

from __future__ import annotations

import torch
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_fake(value: object) -> bool:
    """True for a tensor with a shape and no data."""
    return isinstance(value, FakeTensor)


def is_subclass(value: torch.Tensor) -> bool:
    """True for a tensor made of other tensors, which computes every operation in its own way."""
    return bool(is_traceable_wrapper_subclass(value))


def fake_mask_like(hidden: torch.Tensor) -> torch.Tensor:
    """A fake bool ``(batch, sequence)`` with the symbolic sizes of the fake ``hidden`` ``(batch, sequence, width)``."""
    with hidden.fake_mode:  # type: ignore[attr-defined]
        return torch.empty(hidden.shape[:2], dtype=torch.bool, device=hidden.device)


def memory_of(value: torch.Tensor) -> int:
    """A number that tensors have in common if they share memory; those without data have such memory, too."""
    return int(value.untyped_storage()._cdata)
