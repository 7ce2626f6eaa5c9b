"""Images that went into a forward, and a decoder that got no rows of them: a user is told so.

Where a model merges its image features in code that Dynamo does not compile, no graph tells which rows are visual. The
graph that takes the pixels and the graph of the decoder both run, so the second one can say what is missing. If the
decoder is all that is compiled, the model that calls it stands on the stack, with its pixels.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

from torch import fx

from opskip_compile import _compat
from opskip_compile.errors import NothingSkippedWarning

WORDS = ("pixel", "image", "visual", "vision", "patch")
Compiled = Callable[..., Any]


class _Pixels(threading.local):
    """Pixels went into a graph, and no decoder has run since."""

    taken = False


_HERE = _Pixels()


def takes_pixels(graph: fx.Graph) -> bool:
    """True for a graph with an input, or a weight, of a name that stands for images.

    Not only ``pixel_values``: the graph of a vision tower may start behind them, or know them as an argument's number.
    """
    names = [node.name for node in graph.find_nodes(op="placeholder")]
    return any(word in name for name in names for word in WORDS)


def noting_pixels(run: Compiled) -> Compiled:
    """Call a graph that takes pixels and names no rows."""

    def call(*args: Any) -> Any:
        _HERE.taken = True
        return run(*args)

    return call


def settling(run: Compiled, otherwise: str = "", alone: str = "") -> Compiled:
    """Call a decoder: it has the rows of the images before it, or a user is told ``otherwise``.

    A decoder that is compiled alone has no such graph before it. But the model that calls it got pixels: a user is told
    ``alone``, once for each graph.
    """
    told = False

    def call(*args: Any) -> Any:
        nonlocal told
        seen, _HERE.taken = _HERE.taken, False
        if seen and otherwise:
            warnings.warn(otherwise, NothingSkippedWarning, stacklevel=2)
        elif alone and not told and _compat.caller_has_pixels():
            told = True
            warnings.warn(alone, NothingSkippedWarning, stacklevel=2)
        return run(*args)

    return call
