"""Dispatch modes, as ``FlopCounterMode`` is one: what runs under one of them is not compiled by Dynamo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import module
from torch.utils import _python_dispatch as dispatch

_GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    module._global_forward_pre_hooks,
    module._global_forward_hooks,
    module._global_backward_pre_hooks,
    module._global_backward_hooks,
)


def dispatch_modes_are_on() -> bool:
    """True if a dispatch mode is on under which Dynamo compiles nothing (fake and functional tensors are none)."""
    return torch._C._len_torch_dispatch_stack() > 0 and dispatch.is_in_any_mode_without_ignore_compile_internals()


@contextmanager
def without_modes() -> Iterator[list[Any]]:
    """Take every dispatch mode off, and the signs by which Dynamo knows of them; gives the modes, outermost first.

    Hooks of all modules go, too: by such the counter of FLOPs keeps track of where it is, and Dynamo can't trace them.
    """
    was_on = dispatch._is_in_any_mode_without_ignore_compile_internals
    hooks = [(table, dict(table)) for table in _GLOBAL_HOOKS]
    with dispatch._disable_current_modes() as modes:
        dispatch._is_in_any_mode_without_ignore_compile_internals = False
        for table, _ in hooks:
            table.clear()
        try:
            yield list(reversed(modes))
        finally:
            for table, before in hooks:
                table.update(before)
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
