"""Sizes of the nodes of a rewritten graph, worked out from those of the captured one.

The captured graph has an example value at every node. A node that a pass made has the shape of a captured node,
except for the one dimension that holds kept rows only (`Origin`), so no tensor has to be propagated again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from opskip_compile._compat import size_hint
from opskip_compile.passes.graph.origin import origin
from opskip_compile.schedule.left_out import PROBES, LeftOut

Size = int | str
Shape = tuple[Size, ...]
KEPT = "n"  # a number of kept rows that is not known
PACKED = "packed "  # in front of the name of a row set: the rows of all elements in one list
PROBED = "probes"  # the row set of the text rows whose attention is asked


@dataclass(frozen=True)
class Prompt:
    """The rows of the call for which a graph was compiled.

    Attributes:
        batch, rows: size of the residual stream, without its width.
        visual: visual rows of each element.
        through_visual: rows of each element up to and including its last visual one.
        rooms: the size of a row index, by row set, where the caller of the graph has told it.
        modalities: of the visual rows, those of each modality, where they are told apart.
    """

    batch: int
    rows: int
    visual: tuple[int, ...]
    through_visual: tuple[int, ...]
    rooms: Mapping[str, int] = field(default_factory=dict)
    modalities: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def kept(self, row_set: str) -> int:
        """Rows of a set, the most of any element, at least 1: those that an operator still updates, or `PROBED` ones.
        Of a `PACKED` one those of all elements.

        Args:
            row_set: as a `LeftOut` is written.
        """
        if row_set in self.rooms:
            return self.rooms[row_set]
        if row_set == PROBED:
            return max(min(self.rows - min(self.visual, default=0), PROBES), 1)
        wanted = LeftOut.parse(row_set.removeprefix(PACKED))
        left_out = self.through_visual if wanted.rows == "through_visual" else self.visual
        kept = [self.rows - count + wanted.critical(count) for count in left_out] or [self.rows]
        return max(1, sum(kept) if row_set.startswith(PACKED) else max(kept))


@dataclass(frozen=True)
class Sizes:
    """Looks up shapes.

    Attributes:
        captured: the example value of every node of the captured graph that is one tensor, by name.
        prompt: gives the number of kept rows; None leaves it open.
    """

    captured: Mapping[str, torch.Tensor]
    prompt: Prompt | None

    @classmethod
    def of(cls, graph: fx.Graph, prompt: Prompt | None) -> Sizes:
        """Read the example values of the captured graph."""
        values = ((node.name, node.meta.get("example_value")) for node in graph.nodes)
        return cls({name: value for name, value in values if isinstance(value, torch.Tensor)}, prompt)

    def value(self, node: fx.Node) -> torch.Tensor | None:
        """The captured value that ``node`` is, or is shaped like."""
        source = origin(node)
        return self.captured.get(node.name if source is None else source.like)

    def shape(self, node: fx.Node) -> Shape | None:
        """The shape of what ``node`` yields; None if it is no tensor or not known."""
        value, source = self.value(node), origin(node)
        if value is None:
            return None
        shape: list[Size] = [size_hint(size) for size in value.shape]
        if source is not None and source.times > 1 and isinstance(shape[1], int):
            shape[1] *= source.times
        if source is not None and source.dim is not None:
            shape[source.dim] = (
                KEPT if self.prompt is None else self._shrunk(shape[source.dim], source.rows, self.prompt)
            )
            if source.dim > 0 and self.prompt is not None:
                # The row index has one line for each element, or one for all of them.
                shape[0] = 1 if source.rows.startswith(PACKED) else self.prompt.batch
        return tuple(shape)

    @staticmethod
    def _shrunk(size: Size, row_set: str, prompt: Prompt) -> Size:
        """``size``, rows or a multiple of them (flattened tokens, each for some experts), with kept rows only."""
        times = size // prompt.rows if isinstance(size, int) and size % prompt.rows == 0 else 0
        return times * prompt.kept(row_set) if times else KEPT


def row_dim(node: fx.Node) -> int | None:
    """The dimension of what ``node`` yields that holds kept rows only, or None."""
    source = origin(node)
    return None if source is None else source.dim
