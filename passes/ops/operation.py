"""One entry of the table of operations: all that the passes have to know of an operation stands in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import fx

from opskip_compile._compat import same_size
from opskip_compile.passes.refusal import Refusal, Refused, Why

Dims = Mapping[fx.Node, int]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Rows = Callable[["Call", int], Dims | Refusal]
Resize = Callable[["Call", int, fx.Node], Arguments]
ShapeOf = Callable[[Any], tuple[int, ...] | None]
Flops = Callable[["Call", ShapeOf], int | None]


class Trait(Enum):
    """What else is asked of an operation."""

    POINTWISE = "every element is computed from the elements in the same place"
    LOGICAL = "gives truth values, whatever it is given"
    CAST = "leaves every value as it is, up to its data type and its memory"
    RESHAPES = "gives the same elements in the same order another shape"
    SHAPE_ONLY = "reads the shape of its argument and none of its data"
    FACTORY = "makes new memory without reading any"
    PARTS = "gives several values, taken apart by getitem"
    NORM_STEP = "a norm, or what a norm is written with"
    ACTIVATION = "an activation: costly where it runs on every row"
    PERIODIC = "costly, though Inductor takes it for cheap and computes it again for every reader"
    CONVOLUTION = "mixes rows by a convolution over the sequence, not by an attention"
    LOOSE = "passes a softmax on to the product with the values"


@dataclass(frozen=True)
class Operation:
    """What is known of one operation, whatever its spelling.

    Attributes:
        name: its canonical name.
        signatures: of its built-in functions and methods, tried in this order; see `Signature.parse`.
        synonyms: other names that PyTorch has for it.
        spelled: signatures of single spellings, such as ``"Tensor.where"``.
        renamed: names of parameters of some spelling for those of the table.
        rows: if dimension ``dim`` of the result carries the rows, which dimension of which operand carries them. None
            where no selection is moved above it.
        resize: the arguments of a call for ``n`` rows, where they spell sizes.
        aliases: parameters whose memory a result may share; empty for results that are always new memory.
        writes: parameters that it writes to in every spelling; a pair is written if the second of it is given.
        product: a matrix product: it counts for FLOPs and makes a branch of the stream an operator.
        mixes_rows: an attention product or a convolution over the sequence, which makes an operator an attention.
        flops: FLOPs of a call, from the shapes of its operands; None where they are not known.
        traits: what else there is.
    """

    name: str
    signatures: tuple[str, ...] = ("input",)
    synonyms: tuple[str, ...] = ()
    spelled: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    rows: Rows | None = None
    resize: Resize | None = None
    aliases: tuple[str, ...] = ()
    writes: tuple[str | tuple[str, str], ...] = ()
    product: bool = False
    mixes_rows: bool = False
    flops: Flops | None = None
    traits: frozenset[Trait] = frozenset()


@dataclass(frozen=True)
class Call:
    """One node of a graph, with its arguments by the names of the table.

    Attributes:
        node: the node.
        operation: what it computes.
        arguments: every argument, defaults included.
        in_place: True for a spelling that writes its result to ``input``, such as ``add_``.
        places: which positional argument each of the parameters is, as far as they stand in a row.
    """

    node: fx.Node
    operation: Operation
    arguments: Mapping[str, Any]
    in_place: bool = False
    places: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def operand(self, name: str = "input") -> fx.Node:
        """A tensor argument."""
        value = self.arguments.get(name)
        if not isinstance(value, fx.Node):
            raise Refused(Refusal(Why.ARGUMENTS, f"its argument {name} is not a tensor of the graph"))
        return value

    def dimension(self, name: str = "dim", rank: int | None = None) -> int:
        """An argument that names one dimension, counted from the front."""
        value = self.arguments.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise Refused(Refusal(Why.ARGUMENTS, "the dimension it works along is not one number"))
        # A single number counts as one dimension wherever PyTorch asks for one.
        return value % max(rank if rank is not None else len(shape(self.operand())), 1)

    def tensors(self, *names: str) -> list[fx.Node]:
        """The tensors among the arguments of these names, or among all, once each."""
        values = [self.arguments.get(name) for name in names] if names else list(self.arguments.values())
        return list(dict.fromkeys(node for value in values for node in nodes_in(value) if tensor(node) is not None))

    def replaced(self, name: str, value: Any) -> Arguments:
        """The arguments of the node with another value for one that is given by position or by its own name."""
        args, kwargs = list(self.node.args), dict(self.node.kwargs)
        if name in kwargs:
            kwargs[name] = value
        else:
            args[self.places.index(name)] = value
        return tuple(args), kwargs

    @property
    def rank(self) -> int:
        """Dimensions of the result."""
        return len(shape(self.node))


def nodes_in(value: Any) -> list[fx.Node]:
    """Every node in an argument."""
    if isinstance(value, fx.Node):
        return [value]
    nodes: list[fx.Node] = []
    fx.node.map_arg(value, nodes.append)
    return nodes


def tensor(node: object) -> torch.Tensor | None:
    """The example value of a node that yields one tensor, else None."""
    if not isinstance(node, fx.Node):
        return None
    value = node.meta.get("example_value", node.meta.get("val"))
    return value if isinstance(value, torch.Tensor) else None


def shape(node: fx.Node) -> torch.Size:
    """The example shape of a tensor node.

    Raises:
        Refused: it has no example.
    """
    value = tensor(node)
    if value is None:
        raise Refused(Refusal(Why.UNKNOWN_SHAPE, f"{node.name} has no known shape"))
    return value.shape


def same_sizes(a: object, b: object, *dims: int) -> bool:
    """True if two tensors have the same shape for every input, or the same sizes in ``dims``."""
    first, second = tensor(a), tensor(b)
    if first is None or second is None or (not dims and first.dim() != second.dim()):
        return False
    return all(same_size(first.shape[d], second.shape[d]) for d in dims or range(first.dim()))


def declined(reason: str, why: Why = Why.MIXES_ROWS) -> Refusal:
    """Why an operation does not work row by row here."""
    return Refusal(why, reason)
