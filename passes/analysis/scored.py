"""The attentions that tell which rows are critical, for operators with a keep share: see `passes/scores.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.analysis.locate import RowSource
from opskip_compile.passes.analysis.operators import Match, Operator
from opskip_compile.passes.ops import Call, argument, call_of, is_inplace, name_of, op_name, operand, tensor
from opskip_compile.passes.packages import KERNEL

LAYER_ALONE = (
    "its critical rows can't be told: they depend on the layers before, and this graph holds one layer "
    "(regional=True, or hooks or checkpoints around the layers)"
)
NO_SCORES = (
    "its critical rows can't be told: no attention before it is a scaled_dot_product_attention of all rows of the "
    "prompt with keys in which theirs can be found (attn_implementation='sdpa')"
)
PARTLY = "its critical rows can't be told: an attention before it has keys or a mask in which theirs can't be found"
SPLIT = (
    "its critical rows can't be told: the graph exchanges values with other processes, and the weights of an attention "
    "do not tell which of them have the other heads (a DTensor does); all of them have to choose the same rows"
)
_SDPA, _PAGED, _PACKAGE = "scaled_dot_product_attention", "opskip::paged_attention", "opskip::attend_by_package"
# How models give several heads of queries the same keys.
_WRITES = ("index_copy_", "index_copy_.default")
# What a cache of fixed size makes of its length to say where the keys of the rows are.
_COUNTS = frozenset({"arange", "add", "to", "getitem", "unsqueeze", "size", "cumsum", "sub"})
_REPEATS = frozenset({"expand", "reshape", "view", "unsqueeze", "getitem", "contiguous", "clone", "repeat_interleave"})
LEVEL_LATE = (
    "the level of a prompt can't be told before its first layer: that has no scaled_dot_product_attention of all rows, "
    "which says what of them is padding, or its mask is made in the layer (attn_implementation='sdpa')"
)
TOO_EARLY = "its critical rows can't be told: an attention runs before the visual mask is known in this graph"


@dataclass(frozen=True)
class Scored:
    """One attention that gives scores.

    Attributes:
        layer: its number.
        call: of scaled dot-product attention.
        columns: where the keys of the rows are among all keys, int64 ``(sequence,)``; None if they are the last ones.
        dim: of its operands that has the rows. They are ``(batch, heads, rows, width)``; or ``(batch, rows, heads,
            width)``, with 1; or ``(rows, heads, width)``, of all prompts of a step, each of which reads its own rows.
    """

    layer: int
    call: Call
    columns: fx.Node | None = None
    dim: int = 2

    @property
    def mask(self) -> fx.Node | None:
        """Its attention mask, ``(batch or 1, heads or 1, sequence or 1, keys)``."""
        mask = self.call["attn_mask"] if self.dim == 2 else None
        return mask if isinstance(mask, fx.Node) else None

    @property
    def is_causal(self) -> bool:
        """True if a row reads the rows up to itself without a mask that says so."""
        return self.dim == 0 or bool(self.call["is_causal"])


def scored_attentions(match: Match, source: RowSource) -> tuple[Scored, ...]:
    """All of a graph, in order: of every row of the stream with its own key among others."""
    stream = tensor(source.root)
    graph = source.root.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[fx.Node, Scored] = {}
    for operator in match.everything() if stream is not None else ():
        for node in operator.region if operator.kind == "attention" else ():
            name = op_name(node)
            call = call_of(node) if name in (_SDPA, _PAGED, _PACKAGE) else None
            if call is not None and name == _PAGED and stream is not None:
                if _fits_flat(call, stream.shape[1]):
                    found.setdefault(node, Scored(operator.layer, call, dim=0))
            elif call is not None and name == _PACKAGE and stream is not None:
                if _fits_package(call, stream.shape[1]):
                    found.setdefault(node, Scored(operator.layer, call, dim=1))
            elif call is not None and stream is not None and _fits(call, stream.shape[1]):
                keys = _keys(call, stream.shape[1], order)
                if keys is not None:
                    found.setdefault(node, Scored(operator.layer, call, *keys))
    return tuple(found[node] for node in sorted(found, key=order.__getitem__))


def unscored_attentions(attentions: Sequence[Scored], source: RowSource) -> tuple[fx.Node, ...]:
    """Scaled dot-product attentions of every row of the stream that give no scores, though they should."""
    stream, scored = tensor(source.root), {each.call.node for each in attentions}
    nodes = list(source.root.graph.nodes)
    found = []
    for node in nodes[nodes.index(source.root) :] if stream is not None else ():
        if op_name(node) in (_PAGED, _PACKAGE, KERNEL) and node not in scored:
            found.append(node)
        elif op_name(node) == _SDPA and node not in scored:
            query = tensor(argument(node, "query"))
            if query is None or query.dim() != 4 or (stream is not None and same_size(query.shape[2], stream.shape[1])):
                found.append(node)
    return tuple(found)


def _fits_flat(call: Call, rows: int | torch.SymInt) -> bool:
    query, key = tensor(call["query"]), tensor(call["key"])
    fits = query is not None and key is not None and query.dim() == key.dim() == 3 and call["scale"] is not None
    return fits and same_size(query.shape[0], rows) and same_size(key.shape[0], rows)  # type: ignore[union-attr]


def _fits_package(call: Call, rows: int | torch.SymInt) -> bool:
    query, key = tensor(call["query"]), tensor(call["key"])
    return all(x is not None and x.dim() == 4 and same_size(x.shape[1], rows) for x in (query, key))


def _fits(call: Call, rows: int | torch.SymInt) -> bool:
    query, key, mask = (tensor(call[name]) for name in ("query", "key", "attn_mask"))
    if query is None or key is None or query.dim() != 4 or key.dim() != 4:
        return False
    given = isinstance(call["attn_mask"], fx.Node)
    if given and (mask is None or mask.dim() != 4 or call["is_causal"]):
        return False
    causal_fits = not call["is_causal"] or same_size(key.shape[2], rows)
    return same_size(query.shape[2], rows) and causal_fits


def _keys(call: Call, rows: int | torch.SymInt, order: Mapping[fx.Node, int]) -> tuple[fx.Node | None] | None:
    """Where the keys of the rows are, as in `Scored`; None if that can't be told.

    All keys are theirs, or they were put after those of a cache, or written into the places of one.
    """
    node = call.operand("key")
    value = tensor(node)
    if value is not None and same_size(value.shape[2], rows):
        return (None,)
    while op_name(node) in _REPEATS and operand(node) is not None:
        node = operand(node)  # type: ignore[assignment]
    if op_name(node) == "cat":
        parts = argument(node, "tensors")
        last = tensor(parts[-1]) if isinstance(parts, list | tuple) and parts else None
        whole = tensor(node)
        along = argument(node, "dim") in (2, -2)
        return (None,) if along and whole is not None and last is not None and same_size(last.shape[2], rows) else None
    writes = [user for user in node.users if is_inplace(user) and user.args and user.args[0] is node]
    writes = [write for write in writes if order[write] < order[call.node]]
    if len(writes) != 1 or name_of(writes[0]) not in _WRITES or len(writes[0].args) != 4 or writes[0].args[1] != 2:
        return None
    index = writes[0].args[2]
    size = tensor(index)
    fits = size is not None and size.dim() == 1 and same_size(size.shape[0], rows)
    return (index,) if fits and isinstance(index, fx.Node) else None


def before_layers(match: Match, order: Mapping[fx.Node, int]) -> fx.Node:
    """What enters the first operator of a graph."""
    return min(match.everything(), key=lambda operator: order[operator.entry]).entry


def level_known(match: Match, attentions: Sequence[Scored], order: Mapping[fx.Node, int], known: int) -> bool:
    """True if a level can be chosen before the first operator runs: padding and visual rows are known by then."""
    if not attentions or attentions[0].layer > 0:
        return False
    first = min(order[node] for operator in match.everything() for node in operator.region)
    return known < first and late_nodes(attentions[0], order, first) is not None


def late_nodes(each: Scored, order: Mapping[fx.Node, int], first: int) -> tuple[fx.Node, ...] | None:
    """What the mask and the columns of an attention are made of from the node number ``first`` on, in order.

    A cache of fixed size counts its columns in the layer; they can be counted before it. None if something else is
    computed there, or if memory is written in between.
    """
    found: set[fx.Node] = set()
    left = [node for node in (each.mask, each.columns) if node is not None]
    while left:
        node = left.pop()
        if order[node] >= first and node not in found:
            if op_name(node) not in _COUNTS:
                return None
            found.add(node)
            left += node.all_input_nodes
    late = sorted(found, key=order.__getitem__)
    if late and any(is_inplace(node) for node, i in order.items() if first <= i <= order[late[-1]]):
        return None
    return tuple(late)


def last_scored(operator: Operator) -> int:
    """The last layer whose attention is known when the rows of ``operator`` are chosen."""
    return operator.layer - (operator.kind == "attention")


def why_unscored(
    operator: Operator,
    match: Match,
    attentions: Sequence[Scored],
    unscored: Sequence[fx.Node],
    order: Mapping[fx.Node, int],
    known: int,
    split: bool,
) -> str | None:
    """Why it can't be told which rows of ``operator`` are critical, or None.

    Args:
        attentions: of `scored_attentions`.
        unscored: of `unscored_attentions`.
        order: number of each node.
        known: the number of the node after which the visual rows are known.
        split: the heads are with several processes, and it is not known which.
    """
    if match.only is not None:
        return LAYER_ALONE
    if split:
        return SPLIT
    before = [each for each in attentions if each.layer <= last_scored(operator)]
    if not before and last_scored(operator) >= 0:
        return NO_SCORES
    until = order[operator.entry if operator.kind == "attention" else operator.exit]
    if any(order[node] < until for node in unscored):
        return PARTLY
    return TOO_EARLY if any(order[each.call.node] < known for each in before) else None
