"""Find the operators of a decoder by the shape of its dataflow, not by names.

The residual stream is the chain of dominators of the decoder's output: the values that every path from the embedded
input has to pass. Two neighbours on that chain that are joined by an addition ``d' = d + f(d)`` enclose one operator
(or several, where a model adds attention and FFN in parallel). Dominance is the proof of single entry and single
exit: nothing that the operator computes reaches the output except through ``d'``. An operator that holds an
attention product, or a convolution over the sequence, is an attention (it mixes rows); one that holds another matrix
product is an FFN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

import networkx as nx
import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile._compat.operations import is_higher_order
from opskip_compile.passes.analysis.bypassing import gated_from_outside, without_side_values
from opskip_compile.passes.analysis.cross_attention import crossing
from opskip_compile.passes.analysis.dataflow import dataflow, is_attention_product
from opskip_compile.passes.analysis.near_misses import nearest_sum, sum_without_product
from opskip_compile.passes.analysis.operators import Match, Operator, operator_name
from opskip_compile.passes.graph.origin import source_line
from opskip_compile.passes.ops import Trait, argument, having, is_inplace, name_of, op_name, operand, products, tensor
from opskip_compile.passes.ops.streams import is_stream, summands
from opskip_compile.passes.refusal import Refusal, Why
from opskip_compile.passes.runtime import NAMES_ROWS


def matches_without_rows(graph: fx.Graph) -> list[Match]:
    """The operators on streams that enter the graph as its inputs, if its attention is causal: a decoder's, or a part.

    A part goes from the stream back to the stream, so that its match is in doubt.
    """
    streams = [node for node in graph.find_nodes(op="placeholder") if is_stream(node) and _may_be_prompt(node)]
    if not any(may_be_causal(node) for node in graph.nodes):
        return []
    matches = [match_operators(stream) for stream in streams[:4]]  # the stream, tables of positions
    return [match for match in matches if any(op.kind == "attention" for op in match.operators)]


def _may_be_prompt(stream: fx.Node) -> bool:
    """False for a decode step and for weights."""
    value = tensor(stream)
    return value is not None and not isinstance(value, torch.nn.Parameter) and not same_size(value.shape[1], 1)


def may_be_causal(node: fx.Node) -> bool:
    """True for an attention of decoders: one with a mask or a causal one. Vision towers have neither."""
    if op_name(node) != "scaled_dot_product_attention":
        return False
    return argument(node, "attn_mask") is not None or bool(argument(node, "is_causal"))


def _nested(flow: nx.DiGraph) -> Refusal | None:
    """Why there is no operator if the layers are captured as graphs of their own."""
    for node in flow:
        held = any(arg.op == "get_attr" for arg in node.all_input_nodes)
        if held and is_higher_order(node.target) and not is_attention_product(node):
            where = f"of {node.target}, {source_line(node)}"
            text = f"the layers are in subgraphs ({where}), and nothing is rewritten inside of them"
            return Refusal(Why.NESTED, text).at(node)
    return None


def as_layer(match: Match, layer: int, num_layers: int) -> Match:
    """The match of a graph that holds layer ``layer`` of ``num_layers`` alone, numbered as in the whole decoder."""
    if match.num_layers != 1 or (match.doubt is not None and match.doubt.why is not Why.PART):
        several = Refusal(Why.UNCERTAIN_LAYERS, f"the graph of one layer holds {match.num_layers} attentions")
        return Match(doubt=match.doubt or several)
    return Match(
        operators=[replace(op, layer=layer) for op in match.operators],
        unmatched=[replace(op, layer=layer) for op in match.unmatched],
        misses=[replace(miss, operator=operator_name(layer, miss.kind)) for miss in match.misses],
        num_layers=num_layers,
        other_sums=dict.fromkeys([layer] if match.other_sums else [], "".join(list(match.other_sums.values())[-1:])),
        only=layer,
    )


def match_operators(root: fx.Node) -> Match:
    """Match every operator on the residual stream that starts at ``root``.

    Linear in the size of the graph: one dominator tree, and each region is walked once.
    """
    flow = dataflow(root)
    crosses = crossing(root.graph, flow)
    if crosses is not None:
        return Match(doubt=crosses)
    best = _match_flow(root, flow)
    if not best.operators or best.misses:
        cut = without_side_values(root, flow, frozenset(node for node in flow if _mixes_rows(node)))
        again = Match() if cut is None else _match_flow(root, cut)
        best = again if len(again.operators) > len(best.operators) else best
    if not best.operators:
        best.doubt = best.doubt or _nested(flow)
    return best


def _match_flow(root: fx.Node, flow: nx.DiGraph) -> Match:
    dominators = nx.immediate_dominators(flow, root)
    graph_order = {node: i for i, node in enumerate(root.graph.nodes)}
    best = Match()
    chains: set[tuple[fx.Node, ...]] = set()
    outputs = {n for n in root.graph.output_node().all_input_nodes if n in dominators}
    for sink in sorted(outputs, key=graph_order.__getitem__, reverse=True):
        chain = tuple(_chain(dominators, root, sink))
        streams = tuple(n for n in chain if is_stream(n))
        if streams in chains:
            continue
        chains.add(streams)
        # Cached keys and values end in the middle of the stream; the hidden state passes all of it.
        if len(best.operators) and len(streams) < 2 * len(best.operators):
            continue
        match = _match_chain(streams, flow)
        if match.operators:
            match.doubt = match.doubt or _doubt(match, flow)
        if len(match.operators) + len(match.misses) > len(best.operators) + len(best.misses):
            best = match
    return best


UNCOUNTED = "and the schedule does not say how many layers there are"
PART = Refusal(
    Why.PART,
    "the graph returns the residual stream with no final norm after it, so it may hold a part of the decoder only, "
    + UNCOUNTED,
)


def _doubt(match: Match, flow: nx.DiGraph) -> Refusal | None:
    """Why counting layers by their attention may go wrong here, if it may."""
    if _returns_stream(match.operators[-1].exit, flow):
        return PART
    doubled = _doubled_mixer(match)
    if doubled is not None:
        return doubled
    exits: dict[tuple[int, str], set[fx.Node]] = {}
    for operator in match.operators:
        exits.setdefault((operator.layer, operator.kind), set()).add(operator.exit)
    for (layer, kind), different in exits.items():
        if len(different) > 1:
            return Refusal(
                Why.UNCERTAIN_LAYERS,
                f"{len(different)} operators of kind {kind} follow each other in layer {layer}, so attention does not "
                f"tell where a layer begins, {UNCOUNTED}",
            )
    return None


def _doubled_mixer(match: Match) -> Refusal | None:
    """A convolution tells where a layer begins only if every layer has one mixer and an FFN after it."""
    mixers = [op for op in match.operators if op.kind == "attention"]
    plain = [op for op in mixers if not any(is_attention_product(node) for node in op.region)]
    if not plain or {op.layer for op in match.operators if op.kind == "ffn"} == set(range(match.num_layers)):
        return None
    exit_ = plain[0].exit
    return Refusal(
        Why.UNCERTAIN_LAYERS,
        f"{exit_.name} ({source_line(exit_)}) mixes rows by a convolution, and not every such operator "
        "has an FFN after it, so layers can't be counted, and the schedule does not say how many there are",
    ).at(exit_)


def _returns_stream(last: fx.Node, flow: nx.DiGraph) -> bool:
    """True if the graph returns ``last``, or what sums, scalings and casts with other values make of it: no norm."""
    stream, stack = {last}, [last]
    passing = having(Trait.CAST) | {"add", "sub", "mul", "detach"}
    while stack:
        for user in stack.pop().users:
            if user.op == "output":
                return True
            passes = op_name(user) in passing or user.target in NAMES_ROWS
            if passes and user not in stream and all(p in stream for p in flow.predecessors(user)):
                stream.add(user)
                stack.append(user)
    return False


def _chain(dominators: dict[fx.Node, fx.Node], root: fx.Node, sink: fx.Node) -> list[fx.Node]:
    chain = [sink]
    while chain[-1] is not root:
        chain.append(dominators[chain[-1]])
    return chain[::-1]


def _match_chain(chain: tuple[fx.Node, ...], flow: nx.DiGraph) -> Match:
    match = Match()
    layer = -1
    for entry, exit_ in pairwise(chain):
        parts = list(_branches(entry, exit_, flow))
        if not parts:
            residual = _residual_term(entry, exit_, flow)
            for term in _terms(entry, exit_, flow) if residual is not None else ():
                if term is not residual and term in flow:
                    match.other_sums.setdefault(layer, sum_without_product(exit_, term))
            continue
        if any(kind == "attention" for _, kind, _ in parts):
            layer += 1
        elif layer < 0:
            text = f"{exit_.name} ({source_line(exit_)}) adds an operator to the stream before the first attention"
            match.doubt = Refusal(Why.UNCERTAIN_LAYERS, text).at(exit_)
            continue
        for branch, kind, region in parts:
            # Several summands of one addition, such as routed and shared experts, are one operator.
            known = match.operators + match.unmatched
            number = 1 + len({op.exit for op in known if (op.layer, op.kind) == (layer, kind)} - {exit_})
            if branch is None:
                mixers = sum(_mixes_rows(node) for node in region)
                if mixers > 1:
                    match.doubt = Refusal(
                        Why.UNCERTAIN_LAYERS,
                        f"values pass the residual stream by between {entry.name} and {exit_.name} "
                        f"({source_line(exit_)}), which hold {mixers} attentions, so layers can't be counted",
                    ).at(exit_)
                match.unmatched.append(Operator(layer, kind, entry, exit_, exit_, (), region, number))
                reason = f"{name_of(exit_)} does not add the operator to its own input"
                nearest = nearest_sum(entry, exit_, region, partial(_path, entry=entry, flow=flow))
                miss = Refusal(Why.NOT_RESIDUAL, reason, nearest=nearest)
                match.misses.append(miss.at(exit_, name_of(exit_), operator_name(layer, kind)))
            else:
                residual = _residual_term(entry, exit_, flow)
                assert residual is not None
                summands = tuple(_terms(entry, exit_, flow))
                match.operators.append(Operator(layer, kind, residual, branch, exit_, summands, region, number))
    match.num_layers = layer + 1
    return match


def _branches(
    entry: fx.Node, exit_: fx.Node, flow: nx.DiGraph
) -> Iterator[tuple[fx.Node | None, str, tuple[fx.Node, ...]]]:
    """The operators between two neighbours of the chain: (branch, kind, region); branch None where there is no sum."""
    residual = _residual_term(entry, exit_, flow)
    if residual is None:
        region = _region(exit_, entry, flow)
        kind = _kind(region)
        # A norm in the stream, a cast or a projection to the vocabulary is no operator; only an attention is.
        if kind == "attention":
            yield None, kind, region
        return
    for term in _terms(entry, exit_, flow):
        if term is residual or term not in flow:
            continue
        region = _region(term, entry, flow)
        kind = _kind(region)
        if kind == "attention" or (kind == "ffn" and not gated_from_outside(entry, region)):
            yield term, kind, region


def _residual_term(entry: fx.Node, exit_: fx.Node, flow: nx.DiGraph) -> fx.Node | None:
    if not is_stream(exit_) or summands(exit_) is None:
        return None
    residuals = [term for term in _terms(entry, exit_, flow) if _is_cast_of(term, entry)]
    return residuals[0] if len(residuals) == 1 else None


def _terms(entry: fx.Node, exit_: fx.Node, flow: nx.DiGraph) -> list[fx.Node]:
    """The summands of ``exit_``, in order; inner sums that nobody else reads are opened."""
    terms: list[fx.Node] = []
    stack = [exit_]
    while stack:
        node = stack.pop()
        is_inner = (
            node in flow and node is not entry and len(node.users) == 1 and is_stream(node) and not is_inplace(node)
        )
        operands = summands(node) if node is exit_ or is_inner else None
        if operands is not None and all(is_stream(a) for a in operands):
            stack += operands[::-1]
        else:
            terms.append(node)
    return terms


def _is_cast_of(term: fx.Node, entry: fx.Node) -> bool:
    # The entry may be a cast itself.
    while term is not entry:
        if op_name(term) not in having(Trait.CAST) or (source := operand(term)) is None:
            return False
        term = source
    return True


def _region(last: fx.Node, entry: fx.Node, flow: nx.DiGraph) -> tuple[fx.Node, ...]:
    region, stack = {last: None}, [last]  # a dict, for its order
    while stack:
        for node in flow.predecessors(stack.pop()):
            if node is not entry and node not in region:
                region[node] = None
                stack.append(node)
    return tuple(region)


def _path(node: fx.Node, entry: fx.Node, flow: nx.DiGraph) -> tuple[fx.Node, ...] | None:
    """What ``node`` is computed from the entry by, the last step first; None if an attention is among it."""
    region = _region(node, entry, flow) if node in flow and is_stream(node) else ()
    return region if region and _kind(region) != "attention" else None


def _kind(region: tuple[fx.Node, ...]) -> str | None:
    if any(_mixes_rows(node) for node in region):
        return "attention"
    return "ffn" if any(op_name(node) in products() for node in region) else None


def _mixes_rows(node: fx.Node) -> bool:
    """True for attention products and for short convolutions, by which hybrid decoders mix rows."""
    return is_attention_product(node) or op_name(node) in having(Trait.CONVOLUTION)
