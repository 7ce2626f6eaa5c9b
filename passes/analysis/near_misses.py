"""How near a part of the decoder came to being matched: the addition that almost is a residual one.

A report names it beside the reason, so that the author of a model sees what to change, or what rule is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.analysis.dataflow import is_stream
from opskip_compile.passes.ops.nodes import op_name, tensor
from opskip_compile.report.record import source_line

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
        if op_name(node) != "add" or not _as_wide(node, entry):
            continue
        for operand in node.all_input_nodes:
            if not _as_wide(operand, entry):
                continue
            steps = between(operand) if operand is not entry else ()
            if steps is None or (best is not None and len(steps) >= best[0]):
                continue
            best = len(steps), _words(node, operand, entry, steps)
    return "" if best is None else best[1]


def sum_without_product(exit_: fx.Node, branch: fx.Node) -> str:
    """An addition to the stream in whose branch no matrix product is known."""
    what = op_name(branch) or _target(branch)
    return (
        f"{exit_.name} ({source_line(exit_)}) adds {branch.name} ({what}) to the stream, "
        "but no matrix product is known in it"
    )


def _as_wide(node: fx.Node, entry: fx.Node) -> bool:
    value, stream = tensor(node), tensor(entry)
    return is_stream(node) and value is not None and stream is not None and same_size(value.shape[-1], stream.shape[-1])


def _words(node: fx.Node, operand: fx.Node, entry: fx.Node, steps: tuple[fx.Node, ...]) -> str:
    where = f"{node.name} ({source_line(node)})"
    if not steps:
        return f"{where} adds to {entry.name}, but its sum does not reach the stream unchanged"
    names = [op_name(step) or _target(step) for step in steps]
    through = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"{where} adds to {operand.name}, which is {entry.name} through {through}"


def _target(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
