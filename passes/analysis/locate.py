"""Where the visual rows of a graph come from.

Three things name them: a call of `mark_visual`, the ``masked_scatter`` that merges image features into the
embeddings, or a graph input that an earlier graph of the same forward has marked. The first found, in this order,
gives the mask and the place where the residual stream starts. A merge into a marked input (videos after images, with a
graph break between them) adds to its rows. Merges of features whose rows the schedule does not mean are no source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from opskip_compile.passes.analysis.merges import RowTokens
from opskip_compile.passes.ops import argument, op_name, operand, tensor
from opskip_compile.passes.ops.operation import same_sizes
from opskip_compile.passes.ops.streams import is_stream, uncast
from opskip_compile.passes.refusal import Refusal, Refused, Why
from opskip_compile.passes.runtime import NAMES_ROWS, mark_deepstack

OTHER_ROWS = Refusal(
    Why.OTHER_ROWS,
    "the features that are merged here are of other modalities than the schedule means (modalities= in the schedule)",
)
UNTOLD_ROWS = Refusal(
    Why.UNTOLD_ROWS,
    "the model has rows of several modalities, the schedule does not mean all of them, and no graph tells whose "
    "features are merged here",
)


@dataclass(frozen=True)
class RowSource:
    """The visual mask of a graph.

    Attributes:
        kind: ``"mark_visual"``, ``"masked_scatter"`` or ``"marked_input"``.
        root: the first value of the residual stream, ``(batch, sequence, width)``.
        masks: bool nodes, ``(batch, sequence)`` or with one more dimension; a row is visual where any is True.
        marked: the input that an earlier graph has marked and the input that carries its mask, one of ``masks``.
        rooms: for row sets whose rows the caller of the graph has counted, a value that is as long as their index.
    """

    kind: str
    root: fx.Node
    masks: tuple[fx.Node, ...]
    marked: tuple[fx.Node, fx.Node] | None = None
    rooms: Mapping[str, fx.Node] = field(default_factory=dict)


def locate_rows(
    graph: fx.Graph, marked_input: tuple[fx.Node, fx.Node] | None = None, tokens: RowTokens | None = None
) -> RowSource | None:
    """Find the row source of ``graph``, or None.

    Args:
        graph: a Dynamo graph with example values.
        marked_input: the input that carries the stream and the input that carries its mask, where an earlier graph
            has marked it.
        tokens: tell whose rows are merged; without, every merge counts.

    Raises:
        Refused: features are merged of which can't be told whether the schedule means them, or none that it means.
    """
    tokens = RowTokens() if tokens is None else tokens
    for node in graph.nodes:
        if node.op == "call_function" and node.target in NAMES_ROWS:
            if node.target is mark_deepstack and not tokens.means_visual:
                continue
            mask = operand(node, "visual_mask")
            if mask is not None:
                return RowSource("mark_visual", _first_ancestor(node), (mask,), rooms=_rooms(node))
    merges = _merges(graph)
    if merges:
        taken = {merge: tokens.takes(_merge_mask(merge)) for merge in merges}
        untold = next((merge for merge, known in taken.items() if known is None), None)
        if untold is not None:
            raise Refused(UNTOLD_ROWS, untold)
        masks = tuple(_merge_mask(merge) for merge, asked in taken.items() if asked)
        if marked_input is not None and same_sizes(marked_input[0], merges[-1], 0, 1):
            return RowSource("masked_scatter", merges[-1], (*masks, marked_input[1]), marked_input)
        if not masks:
            raise Refused(OTHER_ROWS, merges[-1])
        return RowSource("masked_scatter", merges[-1], masks)
    if marked_input is not None:
        return RowSource("marked_input", marked_input[0], (marked_input[1],), marked_input)
    return None


def _rooms(node: fx.Node) -> dict[str, fx.Node]:
    return dict(zip(argument(node, "names") or (), argument(node, "rooms") or (), strict=True))


def row_mask(graph: fx.Graph, source: RowSource) -> fx.Node:
    """Insert nodes that yield the bool ``(batch, sequence)`` mask, right after the last mask is known."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    flat = [_as_rows(graph, mask, order) for mask in source.masks]
    result = flat[0]
    for other in flat[1:]:
        with graph.inserting_after(max((result, other), key=lambda n: _position(graph, n))):
            result = graph.call_function(torch.logical_or, (result, other))
    return result


def _position(graph: fx.Graph, wanted: fx.Node) -> int:
    return next(i for i, node in enumerate(graph.nodes) if node is wanted)


def _as_rows(graph: fx.Graph, mask: fx.Node, order: dict[fx.Node, int]) -> fx.Node:
    value = tensor(mask)
    if value is not None and value.dim() == 2:
        return mask
    after = mask
    if mask.op == "placeholder":
        after = max(graph.find_nodes(op="placeholder"), key=order.__getitem__)
    # A mask that is broadcast over the width is the same in every column; any other is reduced.
    broadcast = value is not None and (value.shape[-1] == 1 or value.stride(-1) == 0)
    with graph.inserting_after(after):
        if broadcast:
            return graph.call_method("select", (mask, -1, 0))
        return graph.call_method("any", (mask, -1))


def _merges(graph: fx.Graph) -> list[fx.Node]:
    """The first merge, and those that go on from its result at once (images, then videos).

    A scatter further down the stream adds features between layers; the stream does not start there.
    """
    merges: list[fx.Node] = []
    for node in graph.nodes:
        base = operand(node) if _is_merge(node) else None
        if base is not None and (not merges or uncast(base) is merges[-1]):
            merges.append(node)
    return merges


def _is_merge(node: fx.Node) -> bool:
    if op_name(node) != "masked_scatter" or not is_stream(node):
        return False
    base, mask = operand(node), operand(node, "mask")
    value = tensor(mask)
    if base is None or value is None or value.dtype != torch.bool:
        return False
    # A mask that is broadcast over the rows names none of them.
    if value.dim() != 3 or not same_sizes(mask, node, 0, 1):
        return False
    # Scattering into zeros adds features to the stream (DeepStack); it is not the merge itself.
    return op_name(base) not in ("zeros_like", "zeros", "new_zeros")


def _merge_mask(node: fx.Node) -> fx.Node:
    mask: fx.Node = argument(node, "mask")
    return mask


def _first_ancestor(node: fx.Node) -> fx.Node:
    """The earliest value of the same shape and kind that ``node`` is computed from: the start of its stream."""
    if tensor(node) is None:
        return node
    first, seen, stack = node, {node}, [node]
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    while stack:
        for other in stack.pop().all_input_nodes:
            if other in seen:
                continue
            seen.add(other)
            stack.append(other)
            if is_stream(other) and same_sizes(other, node) and order[other] < order[first]:
                first = other
    return first
