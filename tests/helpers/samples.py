"""PyTorch's own samples of its operations, in every spelling that a captured graph may have.

`op_db` holds sample inputs of some 700 operations. An entry of our table is matched with the operations there by
function and by name; each sample is then written as a call of every function, method, operator and overload that spells
the entry, with its arguments as they come, all by position, all by name, with ``out`` and with ``inplace``. Which of
these calls PyTorch takes is found out by making them.
"""

from __future__ import annotations

import inspect
import operator
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

from opskip_compile.passes.ops import TABLE
from opskip_compile.passes.ops.table import _by_function, _by_name

LARGEST = 20_000  # elements of all tensors of a sample
# Samples of one operation and type that are made at all, so that no list takes minutes: at most, and to choose from.
CONSIDERED, CHOSEN_FROM = 60, 24
# Double precision, so that a wrong row is told from sums that another number of rows adds up in another order.
TYPES = (torch.float64, torch.int64, torch.complex128, torch.bool)
# Entries that PyTorch has no samples of, or too few, and operations whose samples they take.
BORROWED = {
    **dict.fromkeys(("detach", "alias", "identity", "data", "type", "to"), "sin"),
    "type_as": "add",
    "adjoint": "mH",
    "setitem": "__getitem__",
    "getitem": "narrow",
    "slice": "narrow",
}
_SWAPPED = frozenset({"where", "embedding"})  # samples come as the method takes them, not as the function does
aten = torch.ops.aten


def _assigned(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What is read at an index is assigned there, the other way round."""
    read = args[0][args[1]]
    return (*args, (read * 2 + 1).to(args[0].dtype))


def _indexed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A narrowed tensor as an index."""
    x, dim, start, length = args
    return x, (*[slice(None)] * (dim % max(x.dim(), 1)), slice(int(start), int(start) + length))


# How samples of an operation become arguments of an entry, where they stand in another order or are another's.
_ARRANGED: dict[tuple[str, str], Callable[[tuple[Any, ...]], tuple[Any, ...]]] = {
    ("einsum", "einsum"): lambda args: (args[1], *args[0]),
    ("setitem", "__getitem__"): _assigned,
    ("getitem", "narrow"): _indexed,
    ("slice", "narrow"): lambda args: (args[0], args[1], int(args[2]), int(args[2]) + args[3]),
    ("type", "sin"): lambda args: (args[0], torch.float32),
    ("to", "sin"): lambda args: (args[0], args[0].dtype),
}


@dataclass(frozen=True)
class Called:
    """One call: ``kind`` and ``target`` as in `fx.Node`, ``label`` for people."""

    label: str
    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        """Every tensor, once."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values())

    def mapped(self, values: dict[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with something else for each tensor, by its id."""

        def instead(leaf: Any) -> Any:
            return values[id(leaf)] if isinstance(leaf, Tensor) else leaf

        args, kwargs = pytree.tree_map(instead, (self.args, self.kwargs))
        return args, kwargs


def call(kind: str, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What a node of a graph does."""
    return getattr(args[0], target)(*args[1:], **kwargs) if kind == "call_method" else target(*args, **kwargs)


@dataclass(frozen=True)
class Observed:
    """What a call did: its result, and which tensors (by place in `Called.tensors`) it changed or gave back."""

    result: Any
    changed: frozenset[int]
    shared: frozenset[int]


def observe(called: Called) -> Observed | None:
    """Run a call on copies of its tensors; None if PyTorch does not take it."""
    tensors = called.tensors()
    copies = [copied(x) for x in tensors]
    before = [(x.clone(), x._version, x.shape, x.stride()) for x in copies]
    args, kwargs = called.mapped({id(x): copy for x, copy in zip(tensors, copies, strict=True)})
    try:
        torch.default_generator.manual_seed(0)
        result = call(called.kind, called.target, args, kwargs)
    except Exception:
        return None
    changed = [
        i
        for i, (x, (data, version, shape, stride)) in enumerate(zip(copies, before, strict=True))
        if x._version != version or x.shape != shape or x.stride() != stride or not same(x, data)
    ]
    results = {_storage(x) for x in pytree.tree_leaves(result) if isinstance(x, Tensor)}
    shared = [i for i, x in enumerate(copies) if _storage(x) in results]
    return Observed(result, frozenset(changed), frozenset(shared))


def copied(x: Tensor) -> Tensor:
    """A copy of its own memory; strides are kept where no element stands twice."""
    return x.detach().clone()


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit by bit, and not a number where the other is none."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata) if x.layout == torch.strided else id(x)


@cache
def entries() -> dict[str, tuple[Any, ...]]:
    """For each entry of our table the operations of `op_db` that it stands for."""
    matched: dict[str, list[Any]] = {name: [] for name in TABLE}
    for info in op_db:
        for name in _entries_of(info):
            matched[name].append(info)
    by_name = {info.name: info for info in op_db}
    for name, lender in BORROWED.items():
        if name in matched:
            matched[name].append(by_name[lender])
    return {name: tuple(infos) for name, infos in matched.items()}


def _entries_of(info: Any) -> list[str]:
    variants = (
        info.op,
        info.method_variant,
        info.inplace_variant,
        info.operator_variant,
        info.inplace_operator_variant,
    )
    functions, names = _by_function(), _by_name()
    matched = {functions[f][0].name for f in variants if f is not None and f in functions}
    for name in (info.name, *(alias.name for alias in info.aliases)):
        for prefix in ("nn.functional.", "special.", "linalg."):
            name = name.removeprefix(prefix)
        name = name[2:-2] if name.startswith("__") else name
        if name in names:
            matched.add(names[name].name)
    return sorted(matched)


def others() -> list[Any]:
    """Operations of `op_db` that no entry of our table stands for."""
    return [info for info in op_db if not _entries_of(info)]


def types_of(info: Any, every: bool = False) -> list[torch.dtype]:
    """The types to draw samples of: the first that is supported, or all."""
    supported = [dtype for dtype in TYPES if dtype in info.dtypes]
    return supported if every else supported[:1]


def samples_of(info: Any, dtype: torch.dtype, most: int | None = None, name: str = "") -> list[tuple[Any, ...]]:
    """``(args, kwargs)`` of samples for the entry ``name``; ``most`` of them, from all over the list."""
    torch.default_generator.manual_seed(0)
    random.seed(0)
    small: list[tuple[Any, ...]] = []
    considered = CONSIDERED if most is None else max(most, CHOSEN_FROM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sample in islice(info.sample_inputs("cpu", dtype, requires_grad=False), considered):
            args, kwargs = (sample.input, *sample.args), dict(sample.kwargs)
            arrange = _ARRANGED.get((name, info.name))
            args = arrange(args) if arrange is not None else args
            leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if all(x.layout == torch.strided for x in leaves) and sum(x.numel() for x in leaves) <= LARGEST:
                small.append((args, kwargs))
    if most is None or len(small) <= most:
        return small
    return [small[(2 * i + 1) * len(small) // (2 * most)] for i in range(most)]


@dataclass(frozen=True)
class _Target:
    label: str
    kind: str
    target: Any
    parameters: tuple[tuple[tuple[str, Any], ...], ...]  # of each signature: names and defaults, in order


@cache
def _targets(name: str) -> tuple[_Target, ...]:
    """Everything that spells an entry."""
    operation = TABLE[name]
    targets = []
    for function, (entry, label, _) in _by_function().items():
        if entry is operation and label != name:
            targets.append(_Target(label, "call_function", function, _parameters_of(function)))
    for plain in (operation.name, *operation.synonyms):
        for method in (plain, f"{plain}_", f"__{plain}__", f"__i{plain}__", f"__{plain.strip('_')}__"):
            attribute = getattr(torch.Tensor, method, None)
            if callable(attribute):
                targets.append(_Target(f".{method}", "call_method", method, _parameters_of(attribute)))
            elif attribute is not None:
                targets.append(_Target(f"getattr {method}", "call_function", getattr, ()))
        for spelled in (plain, f"{plain}_"):
            packet = getattr(aten, spelled, None) if not spelled.startswith("__") else None
            if isinstance(packet, torch._ops.OpOverloadPacket):
                targets.append(_Target(f"aten.{spelled}", "call_function", packet, ()))
                for overload in map(packet.__getattr__, packet.overloads()):
                    if not any("Tensor" in str(a.type) for a in overload._schema.arguments):
                        continue  # TorchScript's, for numbers
                    parameters = (_of_schema(overload._schema),)
                    targets.append(_Target(f"{overload}", "call_function", overload, parameters))
    seen: dict[tuple[str, Any], _Target] = {}
    for target in targets:
        seen.setdefault((target.kind, target.label if target.target is getattr else target.target), target)
    return tuple(seen.values())


def _of_schema(schema: Any) -> tuple[tuple[str, Any], ...]:
    default = inspect.Parameter.empty
    return tuple(
        ("input" if a.name == "self" else a.name, a.default_value if a.has_default_value() else default)
        for a in schema.arguments
        if not a.kwarg_only
    )


def _parameters_of(function: Any) -> tuple[tuple[tuple[str, Any], ...], ...]:
    if inspect.isfunction(function):
        try:
            parameters = inspect.signature(function).parameters.values()
        except ValueError:
            return ()
        return (tuple((p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD),)
    name = getattr(function, "__name__", "")
    packet = function if isinstance(function, torch._ops.OpOverloadPacket) else getattr(aten, name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return ()
    signatures = [_of_schema(getattr(packet, which)._schema) for which in packet.overloads()]
    return tuple({repr(signature): signature for signature in signatures}.values())


def calls(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, aten_too: bool = True) -> Iterator[Called]:
    """Every call that spells the entry ``name`` with these arguments; not all of them can be made."""
    for target in _targets(name):
        if not aten_too and target.label.startswith(("aten.", "Tensor.")):
            continue
        if target.target is getattr:
            if len(args) == 1 and not kwargs:
                yield Called(target.label, target.kind, getattr, (args[0], target.label.split()[1]), {})
            continue
        yield from _forms(target, args, kwargs)
        if name in _SWAPPED and len(args) > 1:
            yield from _forms(target, (args[1], args[0], *args[2:]), kwargs)


def _forms(target: _Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Called]:
    given = Called(target.label, target.kind, target.target, args, kwargs)
    seen = {_key(given)}
    yield given
    more = [form for parameters in target.parameters for form in _written(given, parameters)]
    if "dim" in kwargs:
        renamed = {"axis" if key == "dim" else key: value for key, value in kwargs.items()}
        more.append(replace(given, label=f"{given.label} axis", kwargs=renamed))
    for form in more:
        if _key(form) not in seen:
            seen.add(_key(form))
            yield form


def _key(called: Called) -> str:
    leaves = pytree.tree_map(lambda leaf: id(leaf) if isinstance(leaf, Tensor) else leaf, (called.args, called.kwargs))
    return repr(leaves)


def _written(given: Called, parameters: tuple[tuple[str, Any], ...]) -> Iterator[Called]:
    """The same call with everything by position, everything by name, and in place."""
    names = [name for name, _ in parameters]
    first = 1 if given.kind == "call_method" else 0
    if len(given.args) <= len(names):
        named = {**dict(zip(names[first:], given.args[first:], strict=False)), **given.kwargs}
        if len(named) == len(given.args[first:]) + len(given.kwargs):
            yield replace(given, label=f"{given.label} by name", args=given.args[:first], kwargs=named)
    whole = _by_position(given, parameters)
    if whole is not None:
        yield replace(whole, label=f"{given.label} by position")
    if "inplace" in names:
        in_place = replace(given, kwargs={**given.kwargs, "inplace": True})
        yield replace(in_place, label=f"{given.label} inplace by name")
        whole = _by_position(in_place, parameters)
        if whole is not None:
            yield replace(whole, label=f"{given.label} inplace by position")


def _by_position(given: Called, parameters: tuple[tuple[str, Any], ...]) -> Called | None:
    """The call with as many arguments by position as there are."""
    args, kwargs = list(given.args), dict(given.kwargs)
    last = max((i for i, (name, _) in enumerate(parameters) if name in kwargs), default=-1)
    for name, default in parameters[len(args) : last + 1]:
        value = kwargs.pop(name, default)
        if value is inspect.Parameter.empty:
            return None
        args.append(value)
    return replace(given, args=tuple(args), kwargs=kwargs)


def with_out(called: Called, observed: Observed) -> Iterator[Called]:
    """The call with ``out``: memory of the shape and type of its result, and the memory of its first operand."""
    result = observed.result
    writes = called.kind == "call_method" or observed.changed or "out" in called.kwargs
    if writes or called.target is getattr or getattr(called.target, "__module__", "") == operator.__name__:
        return
    if isinstance(result, Tensor):
        first = next(iter(called.tensors()), None)
        if first is not None and first.shape == result.shape and first.dtype == result.dtype:
            yield replace(called, label=f"{called.label} out=itself", kwargs={**called.kwargs, "out": first})
        out: Any = torch.zeros_like(result, memory_format=torch.contiguous_format)
    elif isinstance(result, tuple) and all(isinstance(part, Tensor) for part in result):
        out = tuple(torch.zeros_like(part, memory_format=torch.contiguous_format) for part in result)
    else:
        return
    yield replace(called, label=f"{called.label} out", kwargs={**called.kwargs, "out": out})


def variants(info: Any) -> Iterator[tuple[str, str, Any]]:
    """Label, kind and target of the spellings that `op_db` itself names."""
    for function in (info.op, info.method_variant, info.inplace_variant, info.operator_variant):
        if function is None or getattr(function, "__name__", "<lambda>") in ("<lambda>", "_fn"):
            continue
        name = function.__name__
        if getattr(torch.Tensor, name, None) is function:
            yield f".{name}", "call_method", name
        else:
            yield name, "call_function", function


def node_of(called: Called) -> tuple[fx.Node, list[fx.Node]]:
    """One node that makes the call, and the inputs that stand for its tensors."""
    graph = fx.Graph()
    tensors = called.tensors()
    inputs = [graph.placeholder(f"t{i}") for i in range(len(tensors))]
    for node, value in zip(inputs, tensors, strict=True):
        node.meta["example_value"] = value
    args, kwargs = called.mapped({id(x): node for x, node in zip(tensors, inputs, strict=True)})
    return graph.create_node(called.kind, called.target, args, kwargs), inputs
