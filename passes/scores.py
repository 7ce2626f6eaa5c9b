"""Which visual rows are critical: scores of the rows, from attention that the decoder computes anyway.

The score of a row is the attention that the prompt's last text rows have paid to it, summed over the layers so far:
their weights on its key, averaged over the heads. `PROBES` text rows at most are asked; padding is not. Before the
first attention, and where two scores are the same, rows that are spread evenly over the image come first. Keys of
earlier turns in a cache take their part of the attention, and have no score.

Which rows a skipped operator with a share ``keep`` still updates is decided by the layers before it; its FFN also knows
the attention of its own layer. Only scaled dot-product attentions count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from opskip_compile.passes.runtime import Given, fewest, in_room, left_out_rows, size_of_rows
from opskip_compile.schedule.left_out import DECIMALS, PROBES

_GOLDEN = 0.6180339887498949
_TIES = 1e-6  # of the spread rows: far below the attention that any row gets


@torch.library.custom_op("opskip::probe_rows", mutates_args=())
def probe_rows(visual: Tensor, mask: Tensor | None, columns: Tensor | None) -> Tensor:
    """The text rows that are asked: the last `PROBES` of each element that are not padding.

    Args:
        visual: bool ``(batch, sequence)``, True where a row is visual.
        mask: of the first attention, ``(batch or 1, heads or 1, sequence, keys)``; a row that may not read itself is
            padding. None if every row may.
        columns: as for `row_scores`.

    Returns:
        bool ``(batch, sequence)``, True at the other rows.
    """
    text = text_rows(visual, mask, columns)
    if Given.prompts is None:
        return ~_last_of(text)
    asked = torch.zeros_like(text)
    for start, end in Given.prompts.whole():
        asked[:, start:end] = _last_of(text[:, start:end])
    return ~asked


def _last_of(text: Tensor) -> Tensor:
    return text & (text.flip(1).cumsum(1).flip(1) <= PROBES)


def text_rows(visual: Tensor, mask: Tensor | None, columns: Tensor | None) -> Tensor:
    """The rows that are neither visual nor padding, bool ``(batch, sequence)``; arguments as for `probe_rows`."""
    if mask is None:
        return ~visual
    return ~visual & _of_rows(_readable(mask)[:, 0], visual.shape[1], columns).diagonal(dim1=-2, dim2=-1)


@probe_rows.register_fake
def _(visual: Tensor, mask: Tensor | None, columns: Tensor | None) -> Tensor:
    return torch.empty_like(visual)


@torch.library.custom_op("opskip::spread_scores", mutates_args=())
def spread_scores(visual: Tensor) -> Tensor:
    """The scores before the first attention: the visual rows in an order that is spread evenly however many are taken.

    Args:
        visual: bool ``(batch, sequence)``.

    Returns:
        float32 ``(batch, sequence)``: the fractional part of ``i`` times the golden ratio (a Kronecker sequence) for
        the i-th visual row, scaled to be less than any attention.
    """
    number = visual.cumsum(1)
    for start, _ in () if Given.prompts is None else Given.prompts.whole():
        number[:, start:] -= number[:, start : start + 1] - visual[:, start : start + 1].long()
    number = number.double()
    return ((number * _GOLDEN).frac() * _TIES).float()


@spread_scores.register_fake
def _(visual: Tensor) -> Tensor:
    return visual.new_empty(visual.shape, dtype=torch.float32)


@torch.library.custom_op("opskip::row_scores", mutates_args=())
def row_scores(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    live: Tensor,
    before: Tensor,
    columns: Tensor | None,
    scale: float | None,
    causal: bool,
) -> Tensor:
    """The scores after one more attention.

    Args:
        query: floating point ``(batch, heads, probes, width of a head)``: of the rows that are asked; or flat, as a
            server has them, ``(probes, heads, width)``.
        key: ``(batch, heads, keys, width)``, or fewer heads that several heads of queries share; or flat.
        mask: ``(batch or 1, heads or 1, probes or 1, keys)``, bool or added to the products; None without.
        rows: int64 ``(batch, probes)``, their numbers.
        live: bool ``(batch, probes, 1)``; probes that are not live count nothing.
        before: float32 ``(batch, sequence)``, the scores so far.
        columns: int64 ``(sequence,)``, where the keys of the rows are among all keys; None if they are the last ones.
        scale: of the products; None is ``1 / sqrt(width)``.
        causal: probe r reads the rows up to r (``is_causal=True``).

    Returns:
        float32 ``(batch, sequence)``: ``before`` plus ``sum over probes of mean over heads of softmax(q k)``.
    """
    if query.dim() == 3:
        query, key = query.transpose(0, 1)[None], key.transpose(0, 1)[None]
    if Given.prompts is None:
        weights = _of_rows(_weights(query, key, mask, rows, scale, causal), before.shape[1], columns)
        return before + torch.where(live, weights, torch.zeros_like(weights)).sum(1)
    after, at = before.clone(), 0
    for start, end, asked in Given.prompts.asked(PROBES):
        own, keys = query[:, :, at : at + asked], key[:, :, start:end]
        after[:, start:end] += _weights(own, keys, None, rows[:, at : at + asked] - start, scale, causal).sum(1)
        at += asked
    return after


def _weights(
    query: Tensor, key: Tensor, mask: Tensor | None, rows: Tensor, scale: float | None, causal: bool
) -> Tensor:
    """What each probe pays attention to, a mean over the heads, float32 ``(batch, probes, keys)``."""
    batch, heads, probes, width = query.shape
    shared = key.shape[1]
    grouped = query.float().reshape(batch, shared, heads // shared * probes, width)
    with torch.autocast(query.device.type, enabled=False):
        products = grouped @ key.float().transpose(-2, -1) * (width**-0.5 if scale is None else scale)
    products = products.reshape(batch, heads, probes, key.shape[2])
    if causal:
        reads = torch.arange(key.shape[2], device=key.device) <= rows[:, None, :, None]
        products = products.masked_fill(~reads, float("-inf"))
    elif mask is not None and mask.dtype == torch.bool:
        products = products.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        products = products + mask.float()
    return products.softmax(-1).mean(1)


@row_scores.register_fake
def _(query: Tensor, key: Tensor, mask: Any, rows: Tensor, live: Tensor, before: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(before)


@register_flop_formula(torch.ops.opskip.row_scores)
def _(query: torch.Size, key: torch.Size, *args: Any, **kwargs: Any) -> int:
    """The product of every query with every key."""
    return int(2 * query.numel() * key[-2 if len(key) == 4 else 0])


# Which rows are chosen is no function that could be differentiated; whoever reads the scores gets whole numbers.
row_scores.register_autograd(lambda ctx, gradient: (None,) * 9)


@torch.library.custom_op("opskip::kept_count", mutates_args=())
def kept_count(visual: Tensor, through: bool, keep: float) -> tuple[Tensor, Tensor]:
    """How many rows an operator with a keep share updates, which no score changes.

    Args:
        visual, through: as for `kept_rows`.
        keep: the share of the left-out rows that are kept, 0 to 1.

    Returns:
        ``count`` int64 ``(batch, sequence)``: at each row how many rows of its prompt are updated. ``most`` int64
        ``(2,)``: the most of one element, and those of all.
    """
    return count_rows(visual, through, keep)


def count_rows(visual: Tensor, through: bool, keep: float | Tensor) -> tuple[Tensor, Tensor]:
    """What `kept_count` gives, for one share or for float64 ``(batch, sequence)``, at each row that of its prompt."""
    count, of_element = rows_by_prompt(visual, through, keep)
    most = of_element.max() if len(count) else of_element.sum()
    return count, torch.stack([most, of_element.sum()])


def rows_by_prompt(visual: Tensor, through: bool, keep: float | Tensor) -> tuple[Tensor, Tensor]:
    """How many rows are updated: at each row those of its prompt, and those of each element, int64 ``(batch,)``."""
    left_out = left_out_rows(visual, through)
    if Given.prompts is None:
        count = _count(left_out, keep if isinstance(keep, float) else keep[:, :1]).expand(visual.shape)
        of_element = count[:, 0] if visual.shape[1] else count.new_zeros(len(count))
    else:
        count = torch.full(visual.shape, visual.shape[1], device=visual.device)
        saved = count.new_zeros(len(count))
        for start, end in Given.prompts.whole():
            share = keep if isinstance(keep, float) else keep[:, start : start + 1]
            count[:, start:end] = _count(left_out[:, start:end], share)
            saved = saved + (end - start) - count[:, start]
        of_element = visual.shape[1] - saved
    return count.contiguous(), of_element


def _count(left_out: Tensor, keep: float | Tensor) -> Tensor:
    """Of prompts ``(batch, rows)`` the rows that are updated, ``(batch, 1)``."""
    rows = left_out.sum(1, keepdim=True)
    # A share has six decimals, so that nothing but rounding is within 1e-9 of a whole number.
    return left_out.shape[1] - rows + (rows.double() * keep - 10.0 ** -(DECIMALS + 3)).ceil().long()


@kept_count.register_fake
def _(visual: Tensor, through: bool, keep: float) -> tuple[Tensor, Tensor]:
    return counts_like(visual)


def counts_like(visual: Tensor) -> tuple[Tensor, Tensor]:
    """Tensors of the form that `kept_count` gives."""
    return visual.new_empty(visual.shape, dtype=torch.int64), visual.new_empty(2, dtype=torch.int64)


@torch.library.custom_op("opskip::on_host", mutates_args=())
def on_host(most: Sequence[Tensor]) -> list[Tensor]:
    """Numbers on the CPU: a device is waited for once for all of them, and not where a layer makes a size of its own.

    Args:
        most: of `kept_count` for each share, int64 ``(2,)``; one or more.
    """
    return [numbers.clone() for numbers in torch.stack(list(most)).cpu()]


@on_host.register_fake
def _(most: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty(2, dtype=torch.int64) for _ in most]


@torch.library.custom_op("opskip::kept_share", mutates_args=())
def kept_share(visual: Tensor, through: bool, keep: float) -> Tensor:
    """The ``count`` of `kept_count` alone, for which no device is asked."""
    return rows_by_prompt(visual, through, keep)[0]


@kept_share.register_fake
def _(visual: Tensor, through: bool, keep: float) -> Tensor:
    return counts_like(visual)[0]


@torch.library.custom_op("opskip::critical_rows", mutates_args=())
def critical_rows(
    visual: Tensor, through: bool, scores: Tensor, count: Tensor, most: Tensor | None, room: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices of the rows that an operator with a keep share updates.

    Args:
        visual, through, room: as for `kept_rows`.
        scores: float32 ``(batch, sequence)``; of left-out rows those with the highest are kept, the first of equals.
        count, most: what `kept_count` gave, ``most`` on the CPU; without it there is ``room``.

    Returns:
        ``rows`` int64 and ``live`` bool, ``(batch, n)`` as of `kept_rows`: kept rows in order, then left-out ones.

    Raises:
        RuntimeError: as `kept_rows`.
    """
    if room is None:
        assert most is not None
        n = max(int(most[0]), fewest(visual))
    else:
        n = in_room(count, room)
    first = scores.masked_fill(~left_out_rows(visual, through), float("inf"))
    if Given.prompts is None:
        kept = _best(first, count)
    else:
        kept = torch.ones_like(visual)
        for start, end in Given.prompts.whole():
            kept[:, start:end] = _best(first[:, start:end], count[:, start:end])
    live = torch.arange(n, device=visual.device) < kept.sum(1, keepdim=True)
    return (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :n].contiguous(), live


def _best(scores: Tensor, count: Tensor) -> Tensor:
    """The rows with the highest scores, bool ``(batch, rows)``: as many as ``count`` says at the first row."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    taken = torch.arange(scores.shape[1], device=scores.device) < count[:, :1]
    return torch.zeros_like(taken).scatter(1, order, taken)


@critical_rows.register_fake
def _(
    visual: Tensor, through: bool, scores: Tensor, count: Tensor, most: Tensor | None, room: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    shape = (visual.shape[0], size_of_rows(visual, room))
    return visual.new_empty(shape, dtype=torch.int64), visual.new_empty(shape)


def _of_rows(by_key: Tensor, rows: int, columns: Tensor | None) -> Tensor:
    """Of values for every key, ``(batch or 1, n, keys)``, those of the rows: ``(batch or 1, n, rows)``."""
    return by_key[..., -rows:] if columns is None else by_key.index_select(-1, columns)


def _readable(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


PROBE_ROWS = torch.ops.opskip.probe_rows.default
SPREAD_SCORES = torch.ops.opskip.spread_scores.default
ROW_SCORES = torch.ops.opskip.row_scores.default
KEPT_COUNT, ON_HOST = torch.ops.opskip.kept_count.default, torch.ops.opskip.on_host.default
KEPT_SHARE = torch.ops.opskip.kept_share.default
CRITICAL_ROWS = torch.ops.opskip.critical_rows.default
SCORING = frozenset({PROBE_ROWS, SPREAD_SCORES, ROW_SCORES, KEPT_COUNT, ON_HOST, KEPT_SHARE, CRITICAL_ROWS})
"""All of them: they only compute, and no gradient flows through them."""
