"""Tensor subclasses whose operations may mix rows: quantised weights that also quantise what they are multiplied with.

A subclass decides what ``linear(x, w)`` does. Weights in int8 are multiplied row by row; activations may get one scale
for each row, which is row by row too, or one for all of them, which is not. What a subclass does not tell, it is not
trusted with.
"""

from __future__ import annotations

import torch

from opskip_compile._compat import is_subclass

_SAME_MEANING = ("torch.distributed.",)
_BY_ROW = ("PerRow", "PerToken")


def mixing_subclass(value: torch.Tensor | None) -> str:
    """Why an operation on ``value`` may not work row by row, or an empty text."""
    if value is None or not is_subclass(value) or type(value).__module__.startswith(_SAME_MEANING):
        return ""
    name = type(value).__name__
    if not hasattr(value, "act_quant_kwargs"):
        return f"is a {name}, which does not say whether it treats every row alone"
    how = value.act_quant_kwargs
    granularity = getattr(how, "granularity", None)
    if how is not None and not (type(granularity).__name__ in _BY_ROW and getattr(granularity, "dim", -1) == -1):
        return f"is a {name}, which quantises activations by {granularity}, not each row alone"
    return ""
