"""Did pushdown do its job? Counts the costly operations that a skipped operator still runs on every row.

Keys and values of every row have to be computed, since the KV cache keeps them; they and what only they need are
exempt. Anything else that is left costs speed, never correctness, and the report names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from opskip_compile._compat import operations as torch_operations
from opskip_compile.passes.analysis.dataflow import is_attention_product, queries_keys_values
from opskip_compile.passes.analysis.operators import Operator
from opskip_compile.passes.ops import Trait, effects, having, name_of, op_name, operand, products


def costly_operations() -> frozenset[str]:
    """Products, norms and activations: what a skipped operator should not go on doing for every row."""
    return products() | having(Trait.NORM_STEP, Trait.ACTIVATION)


@dataclass(frozen=True)
class Leftover:
    """What the skipped operators have to compute in full, read before the rewrite changes the graph.

    Attributes:
        in_full: skipped operator -> nodes that the definition computes for every row.
        regions: skipped operator -> the nodes of all operators that end in the same addition.
    """

    in_full: Mapping[Operator, tuple[fx.Node, ...]]
    regions: Mapping[Operator, frozenset[fx.Node]]

    @classmethod
    def of(cls, operators: Iterable[Operator], skipped: Iterable[Operator]) -> Leftover:
        """Look at the captured graph."""
        skip, groups = set(skipped), dict[fx.Node, list[Operator]]()
        for op in operators:
            groups.setdefault(op.exit, []).append(op)
        in_full, regions = {}, {}
        for group in groups.values():
            # Parallel operators share their norm: what one of them needs in full is not left over by the other.
            nodes = tuple(n for op in group for n in (_rows_needed_in_full(op) if op in skip else (op.branch,)))
            region = frozenset(n for op in group for n in op.region)
            for op in skip.intersection(group):
                in_full[op], regions[op] = nodes, region
        return cls(in_full, regions)

    def remaining(self, operator: Operator, alive: frozenset[fx.Node]) -> tuple[str, ...]:
        """Names of the costly operations of ``operator`` that are still in the graph and were not needed."""
        excused, stack, region = set(), list(self.in_full[operator]), self.regions[operator]
        while stack:
            node = stack.pop()
            if node not in excused:
                excused.add(node)
                stack.extend(other for other in node.all_input_nodes if other in region)
        costly = costly_operations()
        left = [node for node in operator.region if node in alive and node not in excused]
        return tuple(sorted(name_of(node) for node in left if op_name(node) in costly or _is_unknown_kernel(node)))


def _rows_needed_in_full(operator: Operator) -> tuple[fx.Node, ...]:
    """Nodes of the operator that the definition of skipping computes for every row.

    These are keys, values, other outputs, and what is written into memory that outlives the operator (a static cache).
    """
    attentions = [node for node in operator.region if is_attention_product(node)]
    keys_and_values = [operand for node in attentions for operand in queries_keys_values(node)[1:]]
    outputs = [node for node in operator.region if any(user.op == "output" for user in node.users)]
    written = [user for node in operator.region for user in node.users if _is_known_to_write(user)]
    writes = [user for user in written if not _is_unknown_kernel(user)]
    return (*(node for node in keys_and_values if node is not None), *outputs, *writes)


def _is_known_to_write(node: fx.Node) -> bool:
    """True for a write that is seen, not for one that is only assumed of what nothing is known of."""
    effect = effects(node)
    return bool(effect.written) and not effect.assumed


def _origin_of(node: fx.Node) -> fx.Node:
    """What ``node`` is a view of."""
    while (source := operand(node)) is not None and source in effects(node).shared:
        node = source
    return node


def _is_unknown_kernel(node: fx.Node) -> bool:
    """True for an operator of another library that nothing is known of and that writes to values of this graph alone:
    part of what is computed, not of what is kept."""
    target = node.target
    if op_name(node) is not None or not (torch_operations.is_overload(target) or torch_operations.is_packet(target)):
        return False
    if torch_operations.qualified_name(target)[0] == "aten" or not _is_known_to_write(node):
        return False
    return not any(_origin_of(written).op in ("placeholder", "get_attr") for written in effects(node).written)
