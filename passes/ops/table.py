"""The table of operations: the one place where the passes learn what a node computes.

`declare` fills it, one line an operation. A node's target, whatever its spelling, leads to one entry; `call_of` gives
the node's arguments by name. Everything else that is asked of operations (`effects`, `rows_of`, sets of names) is
derived.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

from torch import fx

from opskip_compile._compat import operations as torch_operations
from opskip_compile.passes.ops.operation import Call, Dims, Operation, Resize, Trait, tensor
from opskip_compile.passes.ops.signature import Signature, parsed
from opskip_compile.passes.ops.subclasses import computes_its_own_way, mixing_subclass
from opskip_compile.passes.refusal import Refusal, Refused, Why

log = logging.getLogger(__name__)

TABLE: dict[str, Operation] = {}
_FUNCTIONS: dict[Any, Operation] = {}  # our own functions and operators, which no name leads to


@dataclass(frozen=True)
class Spelling:
    """What one target stands for: an operation, the signatures to try, and whether it writes to ``input``."""

    operation: Operation
    signatures: tuple[Signature, ...]
    in_place: bool = False

    @cached_property
    def is_plain(self) -> bool:
        """True if no argument but a keyword ``out`` can make it write to memory or share any."""
        known = {parameter.name for signature in self.signatures for parameter in signature.parameters}
        switched = not known.isdisjoint(("inplace", "out"))
        return not (self.in_place or self.operation.aliases or self.operation.writes or switched)

    @cached_property
    def is_view_of_first(self) -> bool:
        """True if all that it does to memory is that its result may share that of its first argument, the input."""
        known = {parameter.name for signature in self.signatures for parameter in signature.parameters}
        first = {signature.parameters[0].name for signature in self.signatures}
        switched = not known.isdisjoint(("inplace", "out"))
        views = self.operation.aliases == ("input",) and first == {"input"}
        return views and not (self.in_place or self.operation.writes or switched)


def declare(*operations: Operation, functions: Iterable[Any] = ()) -> None:
    """Add entries; ``functions`` are targets of our own that stand for the (one) operation.

    Raises:
        ValueError: there is an entry of that name.
    """
    for operation in operations:
        if operation.name in TABLE:
            raise ValueError(f"two entries for {operation.name}")
        TABLE[operation.name] = operation
    for function in functions:
        (_FUNCTIONS[function],) = operations
    forget()


def forget() -> None:
    """Derive everything from the table again, after a change."""
    for cached in (_by_name, _by_function, _names, products, attention_kernels, known_operations):
        cached.cache_clear()
    for spelled in (_spelled_method, _spelled_attribute, _spelled_function):
        spelled.cache_clear()


def names(test: Callable[[Operation], bool]) -> frozenset[str]:
    """The canonical names of all operations for which ``test`` holds."""
    return frozenset(name for name, operation in TABLE.items() if test(operation))


@cache
def _names(trait: Trait) -> frozenset[str]:
    return names(lambda operation: trait in operation.traits)


def having(*traits: Trait) -> frozenset[str]:
    """The canonical names of all operations with one of these traits."""
    return frozenset().union(*map(_names, traits))


@cache
def products() -> frozenset[str]:
    """The canonical names of matrix products."""
    return names(lambda operation: operation.product)


@cache
def attention_kernels() -> frozenset[str]:
    """The canonical names of operations that are a whole attention product."""
    return names(lambda operation: operation.mixes_rows and Trait.CONVOLUTION not in operation.traits)


@cache
def known_operations() -> frozenset[str]:
    """The canonical names that have a rule."""
    return names(lambda operation: operation.rows is not None)


@cache
def _by_name() -> Mapping[str, Operation]:
    """Every name that a method, an attribute or an aten operation may have."""
    return {name: operation for operation in TABLE.values() for name in (operation.name, *operation.synonyms)}


@cache
def _by_function() -> Mapping[Any, tuple[Operation, str, bool]]:
    """Every function of PyTorch that spells an operation: the entry, how it is called there, whether it is in place."""
    known: dict[Any, tuple[Operation, str, bool]] = {}
    in_place: dict[str, list[tuple[Any, bool]]] = {}
    for plain, function, writes in torch_operations.inplace_operators():
        in_place.setdefault(plain, []).append((function, writes))
    for name, operation in _by_name().items():
        for place, namespace in torch_operations.NAMESPACES:
            for spelled in (name, name + "_"):
                function = getattr(namespace, spelled, None)
                if callable(function) and not inspect.isclass(function) and not inspect.ismodule(function):
                    writes = spelled is not name and spelled not in _by_name()
                    known.setdefault(function, (operation, f"{place}.{spelled}", writes))
        for function, writes in in_place.get(name, ()):
            known[function] = (operation, f"operator.i{name}", writes)
    known.update({function: (operation, operation.name, False) for function, operation in _FUNCTIONS.items()})
    return known


def _signatures(operation: Operation, spelled: str, target: Any = None) -> tuple[Signature, ...]:
    renamed = tuple(operation.renamed.items())
    declared = operation.spelled.get(spelled.removesuffix("_") if spelled not in operation.spelled else spelled)
    if declared is not None:
        return (parsed(declared, renamed),)
    if inspect.isfunction(target):
        signature = Signature.of_function(target, operation.renamed)
        if signature is not None:
            return (signature,)
    return tuple(parsed(text, renamed) for text in operation.signatures)


def spelling_of(node: fx.Node) -> Spelling | None:
    """What ``node`` spells, or None if the table does not know it."""
    if node.op == "call_method":
        return _spelled_method(str(node.target))
    if node.op != "call_function":
        return None
    if node.target is getattr:
        return _spelled_attribute(str(node.args[1]))
    return _spelled_function(node.target)


@lru_cache(4096)
def _spelled_method(name: str) -> Spelling | None:
    if name.startswith("__") and name.endswith("__"):
        plain = name[2:-2]
        operation = _by_name().get(plain, _by_name().get(plain + "_"))
        if operation is not None:
            return Spelling(operation, _signatures(operation, f"Tensor.{plain}"))
        operation = _by_name().get(plain[1:], _by_name().get(plain[1:] + "_")) if plain.startswith("i") else None
        return None if operation is None else Spelling(operation, _signatures(operation, f"Tensor.{plain[1:]}"), True)
    operation, writes = _by_name().get(name), False
    if operation is None and name.endswith("_"):
        operation, writes = _by_name().get(name[:-1]), True
    if operation is None:
        return None
    plain = name[:-1] if writes else name
    target = torch_operations.python_method(plain)
    return Spelling(operation, _signatures(operation, f"Tensor.{plain}", target), writes)


@lru_cache(256)
def _spelled_attribute(name: str) -> Spelling | None:
    operation = _by_name().get(name)
    return None if operation is None else Spelling(operation, (parsed("input, name", ()),))


@lru_cache(4096)
def _spelled_function(target: Any) -> Spelling | None:
    known = _by_function().get(target)
    if known is not None:
        operation, spelled, writes = known
        return Spelling(operation, _signatures(operation, spelled, target), writes)
    if torch_operations.is_higher_order(target):
        kernel = _by_name().get(f"higher_order::{target.name()}")
        return None if kernel is None else Spelling(kernel, _signatures(kernel, kernel.name))
    if not (torch_operations.is_overload(target) or torch_operations.is_packet(target)):
        return None
    namespace, name = torch_operations.qualified_name(target)
    if namespace != "aten":  # an operator of a library is known under its whole name only
        name = f"{namespace}::{name}"
    entry, writes = _by_name().get(name) or _by_name().get(name.removeprefix("special_")), False
    entry = entry or _by_name().get(f"*::{name.partition('::')[2]}")  # of any library
    if entry is None and name.endswith("_"):
        entry, writes = _by_name().get(name[:-1]), True
    if entry is None:
        return None
    schema = None if f"aten.{name}" in entry.spelled else torch_operations.only_schema(target)
    if schema is None:
        return Spelling(entry, _signatures(entry, f"aten.{name}"), writes)
    return Spelling(entry, (Signature.of_schema(schema, entry.renamed),), writes)


def operation_named(name: str) -> Operation | None:
    """The entry of one of its names: canonical, a synonym, or with its library, such as ``"opskip::attend"``."""
    return _by_name().get(name)


def op_name(node: fx.Node) -> str | None:
    """The canonical name of what ``node`` computes, or None if the table does not know it.

    In-place spellings answer with the name of the operation (``add_`` is ``"add"``); `is_inplace` tells them apart.
    """
    spelling = spelling_of(node)
    return None if spelling is None else spelling.operation.name


def name_of(node: fx.Node) -> str:
    """The canonical name, or the target as text for a report."""
    return op_name(node) or str(getattr(node.target, "__name__", node.target))


def call_of(node: fx.Node) -> Call | None:
    """The node with its arguments by name; None if the table does not know it, or not with these arguments."""
    spelling = spelling_of(node)
    return None if spelling is None else _bound(node, spelling)


def _bound(node: fx.Node, spelling: Spelling) -> Call | None:
    for signature in spelling.signatures:
        arguments = signature.bind(node.args, node.kwargs)
        if arguments is not None:
            return Call(node, spelling.operation, arguments, spelling.in_place, signature.places)
    return None


def resize_of(node: fx.Node) -> Resize | None:
    """What gives the arguments of ``node`` for fewer rows, where they spell sizes."""
    spelling = spelling_of(node)
    return None if spelling is None else spelling.operation.resize


def rows_of(node: fx.Node, dim: int) -> Dims | Refusal:
    """If dimension ``dim`` of the result carries the rows: which dimension of which operand carries them, or why none.

    A rule that fails refuses this node and nothing else.
    """
    spelling = spelling_of(node)
    if spelling is None or spelling.operation.rows is None:
        return Refusal(Why.NO_RULE, f"no rule for {_long_name(node)}")
    call = _bound(node, spelling)
    if call is None:
        return Refusal(Why.ARGUMENTS, f"its arguments are none that {spelling.operation.name} is known to take")
    try:
        dims = spelling.operation.rows(call, dim)
        if not isinstance(dims, Refusal) and any(computes_its_own_way(tensor(x)) for x in node.all_input_nodes):
            return _in_its_own_way(call, dims)
        return dims
    except Refused as refused:
        return refused.refusal
    except Exception as error:
        log.debug("the rule for %s failed", spelling.operation.name, exc_info=True)
        return Refusal(Why.SURPRISE, f"its rule failed: {type(error).__name__}: {error}")


_LEFT = {"linear": "input", "matmul": "input", "addmm": "mat1"}


def _in_its_own_way(call: Call, dims: Dims) -> Dims | Refusal:
    """What a rule says of a call, if it holds for the subclasses among its operands, too."""
    left = _LEFT.get(call.operation.name, "")
    if list(dims) != [call[left]]:
        names = sorted({type(value).__name__ for x in call.tensors() if computes_its_own_way(value := tensor(x))})
        return Refusal(
            Why.SUBCLASS, f"an operand is of type {' and '.join(names)}, and only its products are looked into"
        )
    reason = mixing_subclass(call, left, rows_of, lambda node: getattr(spelling_of(node), "operation", None))
    return Refusal(Why.SUBCLASS, f"an operand {reason}") if reason else dims


def _long_name(node: fx.Node) -> str:
    """An operator of another library is named with its library."""
    target = node.target
    if torch_operations.is_overload(target) or torch_operations.is_packet(target):
        namespace, name = torch_operations.qualified_name(target)
        return name if namespace == "aten" else str(target)
    return name_of(node)


def argument(node: fx.Node, name: str) -> Any:
    """An argument of a node by the name that the table has for it; None if it is not given or not known."""
    call = call_of(node)
    return None if call is None else call[name]


def operand(node: fx.Node, name: str = "input") -> fx.Node | None:
    """A tensor argument of a node by its name; None if there is none."""
    value = argument(node, name)
    return value if isinstance(value, fx.Node) else None
