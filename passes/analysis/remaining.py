"""Did pushdown do its job? Counts the costly operations that a skipped operator still runs on every row.

Keys and values of every row have to be computed, since the KV cache keeps them; they and what only they need are
exempt. Anything else that is left costs speed, never correctness, and the report names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from opskip_compile.passes.analysis.dataflow import PRODUCTS, factors, is_attention_product
from opskip_compile.passes.analysis.match import MATRIX_PRODUCTS, Operator
from opskip_compile.passes.ops.nodes import is_inplace, op_name

_NORM_STEPS = frozenset({"mean", "var", "rsqrt", "layer_norm", "rms_norm"})
_ACTIVATIONS = frozenset({"silu", "gelu", "relu", "sigmoid", "tanh", "softmax", "mish", "quick_gelu"})
COSTLY = MATRIX_PRODUCTS | _NORM_STEPS | _ACTIVATIONS


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
        left = (op_name(node) for node in operator.region if node in alive and node not in excused)
        return tuple(sorted(name for name in left if name in COSTLY))


def _rows_needed_in_full(operator: Operator) -> tuple[fx.Node, ...]:
    """Nodes of the operator that the definition of skipping computes for every row.

    These are keys, values, other outputs, and what is written into memory that outlives the operator (a static cache).
    """
    keys_and_values = [n for node in operator.region if is_attention_product(node) for n in _right_operands(node)]
    outputs = [node for node in operator.region if any(user.op == "output" for user in node.users)]
    writes = [user for node in operator.region for user in node.users if is_inplace(user)]
    return (*keys_and_values, *outputs, *writes)


def _right_operands(product: fx.Node) -> list[fx.Node]:
    if op_name(product) != "softmax":
        return [a for a in product.args[1:3] if isinstance(a, fx.Node)] + [
            a for name, a in product.kwargs.items() if name in ("key", "value") and isinstance(a, fx.Node)
        ]
    found = [factors(m)[1] for m in (_product(product, True), _product(product, False)) if m is not None]
    return [right for right in found if right is not None]


def _product(node: fx.Node, forward: bool) -> fx.Node | None:
    """The nearest matrix product after or before ``node`` along first operands."""
    for _ in range(16):
        following = next(iter(node.users), None) if forward else node.args[0]
        if isinstance(following, list | tuple) and following:  # sinks are joined to the scores
            following = following[0]
        if not isinstance(following, fx.Node):
            return None
        if op_name(following) in PRODUCTS:
            return following
        node = following
    return None
