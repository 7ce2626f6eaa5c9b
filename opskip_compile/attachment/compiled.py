"""One function, compiled with the backend, which knows whether compiled code has run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx

from opskip_compile import _compat
from opskip_compile.backend.entry import opskip

# A mode sees each operation and need not know of regions; only this process compiles again.
_UNDER_MODES = {"lower": "eager", "regions": False, "alone": True}


class _Here(threading.local):
    """What a thread knows of the call that it is in: how many graphs have run, and under which dispatch modes."""

    graphs = 0
    modes: Any = None


class _Backend:
    """The backend; counts the graphs that run. It knows nothing of the function: Dynamo keeps both for each other.

    Code that is compiled stays as long as its function does, and keeps its backend out of sight of Python's collector.
    A backend that leads back to the function would keep it, and the model with all its weights, for good.
    """

    __name__ = "opskip"  # in Dynamo's messages

    def __init__(self, here: _Here, under_modes: bool) -> None:
        self._here, self._under_modes = here, under_modes

    def __call__(
        self, gm: fx.GraphModule, inputs: Sequence[Any], *, mode: str | None = None, options: Any = None
    ) -> Callable[..., Any]:
        run, here, under_modes = opskip(gm, inputs, mode=mode, options=options), self._here, self._under_modes

        def graph(*args: Any) -> Any:
            here.graphs += 1
            if not under_modes:
                return run(*args)
            with _compat.under_modes(here.modes):
                return run(*args)

        return graph


class Compiled:
    """``torch.compile(function, backend="opskip")`` with a recompile limit of its own.

    Args:
        function: made for this one object alone.
        options: of the backend.
        kwargs: of ``torch.compile``.
        is_layer: the function is one layer's, so that what collects its outputs is around it, in the decoder. A decoder
            has its own with it: if Dynamo leaves that uncompiled, it has to collect as ever.
        under_modes: run the rewritten graphs operation by operation, under the dispatch modes of the call. Dynamo would
            not compile under them, and would give the function up for good.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: dict[str, Any],
        kwargs: dict[str, Any],
        is_layer: bool = False,
        under_modes: bool = False,
    ) -> None:
        self._is_layer = is_layer
        self.function, self._under_modes, self._here = _compat.with_own_code(function), under_modes, _Here()
        if under_modes:
            options, kwargs = {**options, **_UNDER_MODES}, {**kwargs, "fullgraph": False}
        backend = _Backend(self._here, under_modes)
        self._compiled = torch.compile(self.function, backend=backend, options=options, **kwargs)

    def __call__(self, *args: Any, **named: Any) -> tuple[Any, int]:
        """The result, and how many compiled graphs ran for it."""
        self._here.graphs = 0
        modes = _compat.without_modes() if self._under_modes else nullcontext()
        collector = _compat.traceable_collector() if self._is_layer else nullcontext()
        with _compat.whole_in_ddp(), collector, modes as self._here.modes:
            return self._compiled(*args, **named), self._here.graphs
