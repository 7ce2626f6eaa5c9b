"""Write the kernels of FlashAttention packages as an operation of ours that kept rows can be taken of.

A package gives its kernel to PyTorch as an operator, ``flash_attn::_flash_attn_forward`` or one of that name in another
library, with all the arguments that it may ever need. Most of them stand for nothing (no window, no cap, no bias), and
then it is the attention that `attend_by_package` defines.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile._compat.operations import only_schema
from opskip_compile.passes.graph.origin import Origin, set_origin
from opskip_compile.passes.ops import Call, call_of, op_name, tensor
from opskip_compile.passes.packages import KERNEL, attend_by_package, name_of_operator

_OWN = ("query", "key", "value", "scale", "is_causal")
# What an argument is where it stands for nothing; any other that is not listed has to be None.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "dropout_p": (0.0,),
    "window_size_left": (-1,),
    "window_size_right": (-1, 0),
    "softcap": (0.0,),
    "attention_chunk": (0,),
    "return_softmax": (False,),
}
# How a kernel works, never what it computes.
_MANNER = frozenset({"num_splits", "pack_gqa", "sm_margin", "rotary_interleaved", "scheduler_metadata"})


def lift_packages(graph: fx.Graph) -> int:
    """Replace every kernel whose result alone is read; returns how many."""
    lifted = 0
    for node in list(graph.nodes):
        call = call_of(node) if op_name(node) == KERNEL else None
        parts = [user for user in node.users if user.users] if call is not None else []
        if call is None or not _is_plain(call) or any(not is_result(part) for part in parts):
            continue
        schema = only_schema(node.target)
        if schema is None:
            continue
        spelled = {call.operation.renamed.get(each.name, each.name): each.name for each in schema.arguments}
        query, key, value = (call.operand(name) for name in _OWN[:3])
        given = {other: call[name] for name, other in spelled.items() if name not in _OWN[:3]}
        names = tuple(spelled[name] for name in _OWN[:3])
        settings = (bool(call["is_causal"]), call["scale"], name_of_operator(node.target), names, given, None)
        instead(parts, attend_by_package, (query, key, value, *settings))
        lifted += 1
    return lifted


def instead(parts: Sequence[fx.Node], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Let a call of ``function`` stand for the first of the values that an operator gives, each time it is taken."""
    for part in parts:
        graph, node = part.graph, part.args[0]
        assert isinstance(node, fx.Node)
        with graph.inserting_before(part):
            new = graph.create_node("call_function", function, args)
        new.meta = dict(part.meta)
        set_origin(new, Origin(node.name, like=part.name, twin=True))
        part.replace_all_uses_with(new)


def is_result(part: fx.Node) -> bool:
    """True for the first of the values that an operator gives, if it is a tensor."""
    return bool(part.target is operator.getitem and part.args[1] == 0 and tensor(part) is not None)


def _is_plain(call: Call) -> bool:
    """True if every row reads the rows up to itself, or all of them, and nothing else changes what it gets."""
    sizes = [tensor(call[name]) for name in _OWN[:3]]
    query, key, value = sizes
    if query is None or key is None or value is None or any(x.dim() != 4 for x in (query, key, value)):
        return False
    causal = call["is_causal"]
    if not isinstance(causal, bool) or not isinstance(call["scale"], int | float | None):
        return False
    if causal and not same_size(query.shape[1], key.shape[1]):
        return False  # the last query reads the last key, wherever that is
    if not causal and call["window_size_right"] not in (None, -1):
        return False
    others = (name for name in call.arguments if name not in (*_OWN, *_MANNER))
    if any(call[name] not in _NOTHING.get(name, (None,)) for name in others):
        return False
    return not any(isinstance(value, fx.Node) for name, value in call.arguments.items() if name not in _OWN[:3])
