"""What a rewritten graph calls when it runs: the row index, the selection and the scatter.

Three words are enough for every rewrite: `kept_rows` turns the visual mask into one row index per forward,
`select_rows` takes those rows out of a tensor and `scatter_rows` puts them back. The last two are plain Python
that AOTAutograd traces through, so Inductor sees gathers and scatters that it can fuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from opskip_compile._compat import check_on_device, known_at_least, unbacked_size
from opskip_compile.passes.marks import MARKS


@dataclass(frozen=True)
class Prompts:
    """The prompts of a step of a server, whose rows lie one after the other in one element.

    Attributes:
        starts: where the rows of each request begin, and where those of the last end; what comes then is filling.
        lengths: of the rows of each, how many are a whole prompt; 0 where the step has a part of one only.
        text: how many rows of each whole prompt are not visual.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    text: tuple[int, ...]

    @classmethod
    def of(cls, counts: Sequence[int], lengths: Sequence[int], visual: Tensor) -> Prompts:
        """Of requests with so many rows, and ``visual``, bool ``(rows,)`` on the CPU."""
        starts = (0, *accumulate(counts))
        ends = [start + length for start, length in zip(starts, lengths, strict=False)]
        text = [int((~visual[start:end]).sum()) for start, end in zip(starts, ends, strict=False)]
        return cls(starts, tuple(lengths), tuple(text))

    def asked(self, most: int) -> Iterator[tuple[int, int, int]]:
        """Where each whole prompt begins and ends, and how many of its text rows are asked, ``most`` at the most."""
        for start, length, text in zip(self.starts, self.lengths, self.text, strict=False):
            if length:
                yield start, start + length, min(text, most)

    def whole(self) -> Iterator[tuple[int, int]]:
        """Where each whole prompt begins and ends."""
        for start, end, _ in self.asked(0):
            yield start, end


class Given:
    """What a mask does not tell where one element holds several prompts, or parts of some, as in a step of a server.

    Whoever runs a graph for one says it here for as long as it runs: a compiled graph can be told no object.

    Attributes:
        through: bool ``(1, sequence)``, the rows up to the last visual one of each prompt, which may come later.
        prompts: which rows are whole prompts: only of these critical rows can be told.
    """

    through: Tensor | None = None
    prompts: Prompts | None = None


def left_out_rows(visual: Tensor, through: bool) -> Tensor:
    """The rows of a set, bool ``(batch, sequence)``: the visual ones, or all up to an element's last visual one."""
    if not through:
        return visual
    return visual.flip(1).cumsum(1).flip(1) > 0 if Given.through is None else Given.through


@torch.library.custom_op("opskip::kept_rows", mutates_args=())
def kept_rows(visual: Tensor, through: bool, room: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Indices of the rows that a skipped operator still updates.

    Args:
        visual: bool ``(batch, sequence)``, True where a row is visual.
        through: leave out every row up to and including the last visual one (``rows: through_visual``).
        room: its length is n where whoever calls the graph knows it (`opskip_compile.passes.row_counts`); its values
            are not read. Without it the device is asked for n.

    Returns:
        ``rows`` int64 ``(batch, n)`` and ``live`` bool ``(batch, n)``, with n the largest number of kept rows of any
        element and at least `fewest`. Kept rows come first and in order. An element with fewer kept rows is filled
        up with left-out rows of its own that are not ``live``: no row stands twice, and a row that is not live
        must be written back unchanged.

    Raises:
        RuntimeError: more rows are kept than there is room for. A GPU raises it later, and ends.
    """
    left_out = left_out_rows(visual, through)
    kept = (~left_out).sum(1)
    if room is None:
        n = fewest(visual)
        n = max(int(kept.max()), n) if visual.numel() else n
    else:
        n = in_room(kept, room)
    rows = left_out.to(torch.uint8).argsort(dim=1, stable=True)[:, :n].contiguous()
    live = torch.arange(n, device=visual.device) < kept[:, None]
    return rows, live


@kept_rows.register_fake
def _(visual: Tensor, through: bool, room: Tensor | None = None) -> tuple[Tensor, Tensor]:
    shape = (visual.shape[0], size_of_rows(visual, room))
    return visual.new_empty(shape, dtype=torch.int64), visual.new_empty(shape, dtype=torch.bool)


def fewest(visual: Tensor) -> int:
    """The smallest number of rows of an index: 2, or 1 where the sequence has but one row. Inductor asks whether a size
    is 1, which must not depend on the mask."""
    return 2 if visual.shape[1] > 1 else 1


def in_room(kept: Tensor, room: Tensor) -> int:
    """The length of ``room``, after a check that no device waits for: no element keeps more rows."""
    check_on_device((kept <= len(room)).all(), "opskip: more rows are kept than the caller of the graph has counted")
    return len(room)


def size_of_rows(visual: Tensor, room: Tensor | None) -> int | torch.SymInt:
    """For fake implementations: the size of a row index, which only the run knows where there is no ``room``."""
    if room is not None:
        return room.shape[0]
    return unbacked_size(2 if known_at_least(visual.shape[1], 2) else 1)


@torch.library.custom_op("opskip::shared", mutates_args=())
def shared(x: Tensor) -> Tensor:
    """A copy of ``x`` that Inductor computes once instead of inlining ``x`` into every reader."""
    return x.clone()


@shared.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


shared.register_autograd(lambda ctx, gradient: gradient)


@torch.library.custom_op("opskip::visual_rows", mutates_args=())
def visual_rows(hidden_states: Tensor, visual_mask: Tensor) -> Tensor:
    """`mark_visual` in an exported program: a copy of ``hidden_states``, since an operator may not return its input."""
    return hidden_states.clone()


@visual_rows.register_fake
def _(hidden_states: Tensor, visual_mask: Tensor) -> Tensor:
    return torch.empty_like(hidden_states)


visual_rows.register_autograd(lambda ctx, gradient: (gradient, None))


@torch.library.custom_op("opskip::packed_rows", mutates_args=())
def packed_rows(rows: Tensor, live: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that a batch updates, one list for all its elements, without the filling of those that update fewer.

    Args:
        rows, live: int64 and bool ``(batch, n)`` as of `kept_rows`.
        most: int64 ``(2,)`` on the CPU; the second number says how many are live.

    Returns:
        ``places`` int64 ``(2, m)``: element and row of each, in order, then rows that are not live, so that there are
        2 where the batch has 2; none stands twice. ``live`` bool ``(1, m)``.
    """
    count = int(most[1])
    m = max(count, min(2, live.numel()))
    first = (~live).flatten().to(torch.uint8).argsort(stable=True)[:m]
    places = torch.stack([first // max(1, rows.shape[1]), rows.flatten()[first]])
    return places, (torch.arange(m, device=live.device) < count)[None]


@packed_rows.register_fake
def _(rows: Tensor, live: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    m = size_of_rows(live, None)
    return rows.new_empty((2, m)), live.new_empty((1, m))


VISUAL_ROWS = torch.ops.opskip.visual_rows.default
SHARED = torch.ops.opskip.shared.default
KEPT_ROWS = torch.ops.opskip.kept_rows.default
PACKED_ROWS = torch.ops.opskip.packed_rows.default


def select_rows(x: Tensor, rows: Tensor, dim: int) -> Tensor:
    """The rows ``rows`` (int64 ``(batch, n)``) of ``x`` along ``dim``; dimension 0 of ``x`` is the batch or 1."""
    if rows.shape[0] == 1:
        return x.index_select(dim, rows[0])
    index_shape = [1] * x.dim()
    index_shape[0], index_shape[dim] = rows.shape
    size = list(x.shape)
    size[0] = rows.shape[0]
    source = x.expand(size)
    size[dim] = rows.shape[1]
    return source.gather(dim, rows.view(index_shape).expand(size))


def scatter_rows(x: Tensor, rows: Tensor, update: Tensor) -> Tensor:
    """``x`` ``(batch, sequence, width)`` with its rows ``rows`` replaced by ``update`` ``(batch, n, width)``."""
    if rows.shape[0] == 1:
        return x.index_copy(1, rows[0], update)
    return x.scatter(1, rows.unsqueeze(-1).expand_as(update), update)


def select_packed(x: Tensor, places: Tensor, dim: int) -> Tensor:
    """The rows ``places`` of `packed_rows` (int64 ``(2, m)``) along ``dim`` of ``x``.

    Dimension 0 of ``x`` is the batch or 1; in the result it is 1, and dimension ``dim`` is m.
    """
    element, row = places
    if x.shape[0] == 1:
        return x.index_select(dim, row)
    return x.movedim(dim, 1)[element, row].unsqueeze(0).movedim(1, dim)


def scatter_packed(x: Tensor, places: Tensor, update: Tensor) -> Tensor:
    """``x`` ``(batch, sequence, width)`` with the rows at ``places`` replaced by ``update`` ``(1, m, width)``."""
    element, row = places
    return x.index_put((element, row), update[0])


def causal_mask(rows: Tensor, key: Tensor) -> Tensor:
    """Bool ``(batch, 1, n, keys)``: query row i sees the keys up to i, as ``is_causal=True`` has it for all rows."""
    positions = torch.arange(key.shape[-2], device=key.device)
    return positions <= rows[:, None, :, None]


def mark_visual(hidden_states: Tensor, visual_mask: Tensor) -> Tensor:
    """Name the visual rows of the decoder's hidden state, in model code of one's own.

    Call it once on the embedded input, before the first decoder layer, inside the compiled region or before it.

    Args:
        hidden_states: ``(batch, sequence, width)``, floating point.
        visual_mask: bool ``(batch, sequence)``, True where the row came from an image or a video.

    Returns:
        ``hidden_states``, unchanged.

    Raises:
        ValueError: the mask's dtype or shape does not fit.
    """
    if visual_mask.dtype != torch.bool:
        raise ValueError(f"mark_visual: visual_mask must be bool, not {visual_mask.dtype}")
    if hidden_states.dim() != 3 or visual_mask.shape != hidden_states.shape[:2]:
        raise ValueError(
            "mark_visual: hidden_states must be (batch, sequence, width) and visual_mask (batch, sequence), "
            f"not {tuple(hidden_states.shape)} and {tuple(visual_mask.shape)}"
        )
    if torch.compiler.is_exporting():
        named: Tensor = VISUAL_ROWS(hidden_states, visual_mask)
        return named
    if type(hidden_states) is Tensor:  # a real tensor, not one that a tracer made
        MARKS.put(hidden_states, visual_mask)
    return hidden_states


def name_rows(hidden_states: Tensor, visual_mask: Tensor, names: Sequence[str], rooms: Sequence[Tensor]) -> Tensor:
    """`mark_visual` by a caller who has counted the rows that operators keep.

    Args:
        hidden_states, visual_mask: as for `mark_visual`.
        names: row sets, as a `LeftOut` is written, or `PROBED`.
        rooms: for each of them a tensor that is as long as its row index.
    """
    return mark_visual(hidden_states, visual_mask)


def mark_deepstack(hidden_states: Tensor, visual_mask: Tensor) -> Tensor:
    """`mark_visual` by a DeepStack decoder, which knows the rows of images and videos and no others."""
    return mark_visual(hidden_states, visual_mask)


SELECTING: tuple[Any, ...] = (select_rows, select_packed)
SCATTERING: tuple[Any, ...] = (scatter_rows, scatter_packed)
for function in (mark_visual, name_rows, mark_deepstack):
    torch.compiler.allow_in_graph(function)  # type: ignore[no-untyped-call]
NAMES_ROWS = frozenset({mark_visual, name_rows, mark_deepstack, VISUAL_ROWS})
