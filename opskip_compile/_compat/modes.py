"""Dispatch modes, as ``FlopCounterMode`` is one: what runs under one of them is not compiled by Dynamo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _python_dispatch as dispatch


def dispatch_modes_are_on() -> bool:
    """True if a dispatch mode is on under which Dynamo compiles nothing (fake and functional tensors are none)."""
    return torch._C._len_torch_dispatch_stack() > 0 and dispatch.is_in_any_mode_without_ignore_compile_internals()


@contextmanager
def without_modes() -> Iterator[list[Any]]:
    """Take every dispatch mode off, and the sign by which Dynamo knows of them; gives the modes, outermost first."""
    was_on = dispatch._is_in_any_mode_without_ignore_compile_internals
    with dispatch._disable_current_modes() as modes:
        dispatch._is_in_any_mode_without_ignore_compile_internals = False
        try:
            yield list(reversed(modes))
        finally:
            dispatch._is_in_any_mode_without_ignore_compile_internals = was_on


@contextmanager
def under_modes(modes: list[Any]) -> Iterator[None]:
    """Put the modes back for a while that `without_modes` has taken off."""
    for mode in modes:
        dispatch._push_mode(mode)
    try:
        yield
    finally:
        for _ in modes:
            dispatch._pop_mode()
