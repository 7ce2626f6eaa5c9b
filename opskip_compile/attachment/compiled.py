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

_UNDER_MODES = {"lower": "eager", "regions": False}  # a mode sees each operation, and need not know of regions


class Compiled:
    """``torch.compile(function, backend="opskip")`` with a recompile limit of its own.

    Args:
        function: made for this one object alone.
        options: of the backend.
        kwargs: of ``torch.compile``.
        under_modes: run the rewritten graphs operation by operation, under the dispatch modes of the call. Dynamo would
            not compile under them, and would give the function up for good.
    """

    def __init__(
        self, function: Callable[..., Any], options: dict[str, Any], kwargs: dict[str, Any], under_modes: bool = False
    ) -> None:
        self.function, self._under_modes, self._here = _compat.with_own_code(function), under_modes, threading.local()
        if under_modes:
            options, kwargs = {**options, **_UNDER_MODES}, {**kwargs, "fullgraph": False}
        self._compiled = torch.compile(self.function, backend=self._backend, options=options, **kwargs)

    def _backend(
        self, gm: fx.GraphModule, inputs: Sequence[Any], *, mode: str | None = None, options: Any = None
    ) -> Callable[..., Any]:
        run = opskip(gm, inputs, mode=mode, options=options)

        def graph(*args: Any) -> Any:
            self._here.graphs += 1
            if not self._under_modes:
                return run(*args)
            with _compat.under_modes(self._here.modes):
                return run(*args)

        return graph

    def __call__(self, *args: Any, **named: Any) -> tuple[Any, int]:
        """The result, and how many compiled graphs ran for it."""
        self._here.graphs = 0
        modes = _compat.without_modes() if self._under_modes else nullcontext()
        with _compat.traceable_collector(), modes as self._here.modes:
            return self._compiled(*args, **named), self._here.graphs
