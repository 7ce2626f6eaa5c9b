"""Decode steps that somebody compiles around the model.

``generate`` does so with a static cache, with ``fullgraph=True`` if it is told to. A step has no visual rows, so there
is nothing to skip: it is traced straight through, as one graph with what is around it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STREAMS = ("input_ids", "inputs_embeds", "hidden_states")


def is_traced_step(args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """True while Dynamo traces a call of a model, a decoder or a layer with one row for each element of the batch.

    Args:
        args: of the call; the first one may be ids ``(batch, sequence)`` or rows ``(batch, sequence, width)``.
        named: its keyword arguments.
    """
    if not torch.compiler.is_compiling():
        return False
    rows = [value for value in (*args[:1], *(named.get(name) for name in STREAMS)) if isinstance(value, Tensor)]
    return len(rows) > 0 and all(value.dim() in (2, 3) and value.shape[1] == 1 for value in rows)
