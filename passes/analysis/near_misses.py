"""How near a part of the decoder came to being matched: the addition that almost is a residual one.

A report names it beside the reason, so that the author of a model sees what to change, or what rule is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from opskip_compile.passes.graph.origin import source_line
from opskip_compile.passes.ops import name_of, op_name
from opskip_compile.passes.ops.streams import is_as_wide

_SHOWN = 4


def nearest_sum(
    entry: fx.Node, exit_: fx.Node, region: Iterable[fx.Node], between: Callable[[fx.Node], tuple[fx.Node, ...] | None]
) -> str:
    """The addition between ``entry`` and ``exit_`` whose one operand is least far from the stream; empty if none.

    Args:
        region: the nodes between them.
        between: what an operand is computed from the entry by, or None if it holds an operator itself.
    """
    best: tuple[int, str] | None = None
    for node in (exit_, *region):
        if op_name(node) != "add" or not is_as_wide(node, entry):
            continue
        for operand in node.all_input_nodes:
            if not is_as_wide(operand, entry):
                continue
            steps = between(operand) if operand is not entry else ()
            if steps is None or (best is not None and len(steps) >= best[0]):
                continue
            best = len(steps), _words(node, operand, entry, steps)
    return "" if best is None else best[1]


def sum_without_product(exit_: fx.Node, branch: fx.Node) -> str:
    """An addition to the stream in whose branch no matrix product is known."""
    return (
        f"{exit_.name} ({source_line(exit_)}) adds {branch.name} ({name_of(branch)}) to the stream, "
        "but no matrix product is known in it"
    )


def _words(node: fx.Node, operand: fx.Node, entry: fx.Node, steps: tuple[fx.Node, ...]) -> str:
    where = f"{node.name} ({source_line(node)})"
    if not steps:
        return f"{where} adds to {entry.name}, but its sum does not reach the stream unchanged"
    names = [name_of(step) for step in steps]
    through = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"{where} adds to {operand.name}, which is {entry.name} through {through}"
