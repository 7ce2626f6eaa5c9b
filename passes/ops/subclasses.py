"""Tensor subclasses as operands: quantised weights, which may also quantise what they are multiplied with.

A subclass decides what ``linear(x, w)`` does. Weights in int8 are multiplied row by row; activations may get one scale
for each row, which is row by row too, or one for all of them, which is not: then leaving rows out would round the
others in another way. Nothing that a subclass says of itself is taken for it. What its product is made of is traced,
and every operation from the result up to the rows is asked for its rows, as pushdown asks the operations of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, fx

from opskip_compile._compat import is_subclass
from opskip_compile._compat.subclasses import operations_inside, parts_of
from opskip_compile.passes.ops.operation import Call, Operation, Trait, nodes_in, tensor
from opskip_compile.passes.refusal import Refusal

Ask = Callable[[fx.Node, int], Mapping[fx.Node, int] | Refusal]
Known = Callable[[fx.Node], Operation | None]

_SAME_MEANING = ("torch.distributed.",)
_ROWS = (3, 29, 7)  # sizes of the dimensions in front, none of which is a product of the others
_ALL_ALIKE = ("zeros", "ones", "full")
BY_ROW = "with one scale for each row (PerRow() or PerToken() of torchao) it would be skipped wholly"


@dataclass(frozen=True)
class _LookedInto:
    """A product that was looked into: what was found holds for another one that is equal in all of this."""

    function: object
    kinds: tuple[object, ...]
    contexts: tuple[object, ...]
    answer: str


_KNOWN: list[_LookedInto] = []
_MOST_KNOWN = 256


def computes_its_own_way(value: Tensor | None) -> bool:
    """True for a subclass that gives operations a meaning of its own."""
    return value is not None and is_subclass(value) and not type(value).__module__.startswith(_SAME_MEANING)


def mixing_subclass(call: Call, left: str, ask: Ask, known: Known) -> str:
    """Why a product with a subclass among its operands may not work row by row, or an empty text.

    Args:
        call: the product.
        left: its argument whose rows are those of the result.
        ask: the rule of an operation: which dimension of which operand carries the rows of a dimension of its result.
        known: the entry of an operation.
    """
    nodes = nodes_in(list(call.arguments.values()))
    examples = [value for node in nodes if (value := tensor(node)) is not None]
    names = " and ".join(sorted({type(value).__name__ for value in examples if computes_its_own_way(value)}))
    x = tensor(call[left])
    if x is None or computes_its_own_way(x) or not 2 <= x.dim() <= len(_ROWS) + 1 or len(examples) != len(nodes):
        return f"is of type {names}, and only its products are looked into"
    at = nodes.index(call[left])
    if not all(isinstance(size, int) for value in (*examples[:at], *examples[at + 1 :]) for size in value.shape):
        return f"is of type {names} whose sizes are not known"
    kinds, contexts = _kinds(call, left), tuple(_contexts(examples))
    for asked in _KNOWN:
        if asked.function == call.node.target and asked.kinds == kinds and _equal(asked.contexts, contexts):
            return asked.answer
    reason = _looked_into(call, at, nodes, examples, ask, known)
    answer = f"is of type {names}: {reason}" if reason else ""
    if len(_KNOWN) >= _MOST_KNOWN:
        _KNOWN.clear()
    _KNOWN.append(_LookedInto(call.node.target, kinds, contexts, answer))
    return answer


def _kinds(call: Call, left: str) -> tuple[object, ...]:
    """Everything about the operands that can be compared; of the left one no sizes but the last."""

    def kind(name: str, value: Any) -> object:
        example = tensor(value)
        if example is None:
            return name, str(value)
        sizes = (example.dim(), example.shape[-1]) if name == left else tuple(_layout(example))
        return name, type(example), example.dtype, example.device, sizes

    return tuple(kind(name, value) for name, value in call.arguments.items())


def _layout(value: Tensor) -> list[object]:
    if not is_subclass(value):
        return [value.shape, value.stride(), value.dtype]
    parts = parts_of(value)[0]
    return [value.shape, *((name, *_layout(part)) for name, part in parts.items())]


def _contexts(examples: Sequence[Tensor]) -> list[object]:
    """What subclasses consist of besides tensors, those inside of others too."""
    found: list[object] = []
    for value in examples:
        if is_subclass(value):
            parts, context = parts_of(value)
            found += [type(value), context, *_contexts(list(parts.values()))]
    return found


def _equal(a: object, b: object) -> bool:
    try:
        return bool(a == b)
    except Exception:  # of objects that do not compare nothing is taken for granted
        return False


def _looked_into(
    call: Call,
    at: int,
    nodes: Sequence[fx.Node],
    examples: Sequence[Tensor],
    ask: Ask,
    known: Known,
) -> str:
    """Trace the product of some rows and prove it, or say why not."""
    node, x = call.node, examples[at]
    rank, width = x.dim(), x.shape[-1]
    if not isinstance(width, int):
        return "the width of its rows is not known"

    def product(*values: Tensor) -> Any:
        given = dict(zip(nodes, values, strict=True))
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: given[n])
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    try:
        graph = operations_inside(product, examples, {at: (*_ROWS[: rank - 1], width)})
    except Exception as error:
        return (
            f"its product can't be traced ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        )
    before = sum(_count(example) for example in examples[:at])
    placeholder = list(graph.find_nodes(op="placeholder"))[before]
    return _coupled(graph, placeholder, ask, known)


def _count(value: Tensor) -> int:
    return sum(_count(part) for part in parts_of(value)[0].values()) if is_subclass(value) else 1


def _coupled(graph: fx.Graph, x: fx.Node, ask: Ask, known: Known) -> str:
    """Why a row of the result may depend on other rows of ``x``, or an empty text.

    From the result upwards, every value that depends on ``x`` has to carry all dimensions of the rows, and no other
    value may carry any: a scale of all rows carries none, and constants that are read by row carry some.
    """
    reads = {x}
    for node in graph.nodes:
        if not reads.isdisjoint(node.all_input_nodes):
            reads.add(node)
    result = graph.output_node().args[0]
    rows = tuple(range(x.meta["val"].dim() - 1))
    if not isinstance(result, fx.Node) or tensor(result) is None:
        return "it does not give one tensor"
    wanted: dict[fx.Node, tuple[int, ...]] = {result: rows}
    for node in reversed(list(graph.nodes)):
        if node not in wanted or node is x:
            continue
        dims = wanted[node]
        if node.op != "call_function":
            return f"{node.name} holds values for single rows"
        operation = known(node)
        if not node.all_input_nodes and operation is not None and operation.name in _ALL_ALIKE:
            continue
        carried = _through_reshape(node, dims, operation) or _by_rule(node, dims, reads, ask)
        if isinstance(carried, str):
            return carried
        for operand, found in carried.items():
            if wanted.setdefault(operand, found) != found:
                return f"the rows of {_short(operand)} are read in two orders"
    return "" if wanted.get(x) == rows else "the rows of its result are not those of its operand, in their order"


def _through_reshape(
    node: fx.Node, dims: tuple[int, ...], operation: Operation | None
) -> dict[fx.Node, tuple[int, ...]]:
    """The same elements in the same order: rows in front stay rows in front, in as many dimensions as hold them."""
    if operation is None or Trait.RESHAPES not in operation.traits or dims != tuple(range(len(dims))):
        return {}
    (source,) = node.all_input_nodes
    sizes, rows = source.meta["val"].shape, prod(node.meta["val"].shape[: len(dims)])
    count = next((n for n in range(1, len(sizes)) if prod(sizes[:n]) == rows), 0)
    return {source: tuple(range(count))} if count else {}


def _by_rule(
    node: fx.Node, dims: tuple[int, ...], reads: Container[fx.Node], ask: Ask
) -> dict[fx.Node, tuple[int, ...]] | str:
    """For each operand the dimensions that carry the rows of the dimensions ``dims`` of the result; or why not."""
    found: dict[fx.Node, tuple[int, ...]] = {}
    for dim in dims:
        answer = ask(node, dim)
        if isinstance(answer, Refusal):
            return f"{_short(node)}: {answer.reason}"
        for operand, at in answer.items():
            found[operand] = (*found.get(operand, ()), at)
    for operand in node.all_input_nodes:
        if operand in reads and len(found.get(operand, ())) != len(dims):
            return f"{_short(_last_reduction(operand, reads))} goes over all rows, and all read its result; {BY_ROW}"
    return found


def _last_reduction(node: fx.Node, reads: Container[fx.Node]) -> fx.Node:
    """What made one value of many, as far as the sizes above ``node`` tell."""
    while sources := [source for source in node.all_input_nodes if source in reads]:
        source = max(sources, key=_numel)
        if _numel(source) > _numel(node):
            break
        node = source
    return node


def _numel(node: fx.Node) -> int:
    value = tensor(node)
    return 0 if value is None else value.numel()


def _short(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0] if node.op == "call_function" else node.name
