"""Let full attentions do without their dense mask where it is the causal one, which is asked once per forward.

The answer is only known when the graph runs (padding, packed prompts, sliding windows), so both ways are in it. The
causal kernel adds the same products in another order: results differ from the dense mask's in the last bits.
"""

from __future__ import annotations

import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.graph.origin import Origin, origin, set_origin
from opskip_compile.passes.ops import Call, call_of, mutated_nodes, op_name, tensor
from opskip_compile.passes.ops.subclasses import computes_its_own_way
from opskip_compile.passes.tune.causal_attention import ATTEND, is_causal


def ask_for_causal_masks(graph: fx.Graph) -> int:
    """Rewrite every full attention under a dense boolean mask; returns how many."""
    asked: dict[fx.Node, fx.Node] = {}
    attentions = [(call, mask) for node in graph.nodes for call, mask in _masked_attention(node)]
    mutated = mutated_nodes(graph) if attentions else frozenset()
    changed = 0
    for call, mask in attentions:
        if mask in mutated:
            continue
        if mask not in asked:
            with graph.inserting_after(mask):
                asked[mask] = graph.create_node("call_function", is_causal, (mask,), name=f"{mask.name}_is_causal")
            set_origin(asked[mask], Origin(mask.name))
        node = call.node
        operands = tuple(call.operand(name) for name in ("query", "key", "value"))
        with graph.inserting_before(node):
            args = (*operands, mask, asked[mask], call["scale"], call["enable_gqa"])
            new = graph.create_node("call_function", ATTEND, args, name=f"{node.name}_attend")
        new.meta.update(node.meta)
        set_origin(new, Origin(node.name, node.name, twin=True))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        changed += 1
    return changed


def _masked_attention(node: fx.Node) -> list[tuple[Call, fx.Node]]:
    """The call and its mask, if ``node`` is an attention of the captured graph in a form that `attend` takes."""
    if op_name(node) != "scaled_dot_product_attention" or origin(node) is not None:
        return []
    call = call_of(node)
    mask = None if call is None else call["attn_mask"]
    if call is None or not isinstance(mask, fx.Node) or call["dropout_p"] != 0.0 or call["is_causal"]:
        return []
    query, key, value = (tensor(call[name]) for name in ("query", "key", "value"))
    bools, out = tensor(mask), tensor(node)
    if bools is None or query is None or key is None or value is None or out is None:
        return []
    # Under autocast the operands may have other types than the result, and a subclass its own attention.
    plain = all(x.dim() == 4 and x.dtype == out.dtype and not computes_its_own_way(x) for x in (query, key, value))
    if not plain or bools.dim() != 4 or bools.dtype != torch.bool:
        return []
    square = same_size(bools.shape[2], query.shape[2]) and same_size(bools.shape[3], key.shape[2])
    return [(call, mask)] if square else []
