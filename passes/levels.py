"""Levels: each prompt of a batch takes one, and operators keep the share of its level.

What a level is and how it is chosen says `opskip_compile.schedule.chooser`. The choice is made before the first layer,
from what enters it; from then on a level is only another number of kept rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opskip_compile.passes.runtime import Given
from opskip_compile.passes.scores import count_rows, counts_like, text_rows
from opskip_compile.schedule.chooser import BUCKETS, MOST_GUESS, sign

_TAKEN: dict[str, Tensor] = {}


def taken(digest: str) -> tuple[int, ...]:
    """The level of each element of the last batch that ran under the schedule with this digest; empty if none did."""
    level = _TAKEN.get(digest)
    return () if level is None else tuple(level.tolist())


def forget(digest: str) -> None:
    """No batch has run under the schedule with this digest, since it was compiled anew."""
    _TAKEN.pop(digest, None)


@torch.library.custom_op("opskip::choose_level", mutates_args=())
def choose_level(
    hidden: Tensor,
    visual: Tensor,
    mask: Tensor | None,
    columns: Tensor | None,
    weights: Sequence[float],
    bias: Sequence[float],
    gains: Sequence[float],
    threshold: float,
    digest: str,
) -> Tensor:
    """The level of each element.

    Args:
        hidden: ``(batch, sequence, width)``, what enters the first layer.
        visual: bool ``(batch, sequence)``, True where a row is visual.
        mask, columns: as for `probe_rows`.
        weights: ``levels * 2 * BUCKETS`` numbers, level by level, and
        bias, gains, threshold: as of a `Chooser`.
        digest: of the schedule, under which `taken` finds the levels.

    Returns:
        int64 ``(batch, sequence)``: at each row the level of its prompt.
    """
    text = text_rows(visual, mask, columns)
    spans = [(0, visual.shape[1])] if Given.prompts is None else list(Given.prompts.whole())
    parts = [features(hidden[:, a:b], visual[:, a:b], text[:, a:b]) for a, b in spans]
    table = torch.tensor(weights, dtype=torch.float64, device=hidden.device).view(len(bias), 2 * BUCKETS)
    added = torch.tensor(bias, dtype=torch.float64, device=hidden.device)
    worth = torch.tensor(gains, dtype=torch.float64, device=hidden.device)
    levels = [levels_of(known @ table.T + added, worth, threshold) for known in parts]
    _TAKEN[digest] = torch.cat(levels) if levels else visual.new_empty((0,), dtype=torch.int64)
    found = visual.new_zeros(visual.shape, dtype=torch.int64)
    for (start, end), level in zip(spans, levels, strict=True):
        found[:, start:end] = level[:, None]
    return found


@choose_level.register_fake
def _(hidden: Tensor, visual: Tensor, *rest: object) -> Tensor:
    return visual.new_empty(visual.shape, dtype=torch.int64)


# A level is no function that could be differentiated.
choose_level.register_autograd(lambda ctx, gradient: (None,) * 9)


def levels_of(guesses: Tensor, gains: Tensor, threshold: float) -> Tensor:
    """The levels that a `Chooser` takes, int64 ``(batch,)``.

    Args:
        guesses: float64 ``(batch, levels)``.
        gains: float64 ``(levels,)``.
        threshold: as of the `Chooser`.
    """
    trusted = guesses <= threshold
    worth = (gains - (guesses.clamp(max=MOST_GUESS) / 2).exp()).masked_fill(~trusted, -torch.inf)
    deepest = len(gains) - 1 - worth.flip(1).argmax(1)  # of equals the deepest
    return torch.where(trusted.any(1), deepest, 0)


def features(hidden: Tensor, visual: Tensor, text: Tensor) -> Tensor:
    """What a chooser knows of each element, float64 ``(batch, 2 * BUCKETS)``; a mean of no rows is 0.

    Args:
        hidden: ``(batch, sequence, width)``, what enters the first layer.
        visual, text: bool ``(batch, sequence)``, its visual rows and its text rows without padding.
    """
    width = hidden.shape[2]
    signs = torch.tensor([sign(column) for column in range(width)], dtype=torch.float64, device=hidden.device)
    bucket = torch.arange(width, device=hidden.device) % BUCKETS
    parts = []
    for rows in (text, visual):
        total = hidden.double().masked_fill(~rows.unsqueeze(-1), 0).sum(1) / rows.sum(1, keepdim=True).clamp(min=1)
        parts.append(total.new_zeros(len(total), BUCKETS).index_add_(1, bucket, total * signs))
    return torch.cat(parts, 1)


@torch.library.custom_op("opskip::kept_by_level", mutates_args=())
def kept_by_level(visual: Tensor, through: bool, shares: Sequence[float], level: Tensor) -> tuple[Tensor, Tensor]:
    """As `kept_count`, with the share of each element's level.

    Args:
        visual, through: as for `kept_rows`.
        shares: of the left-out rows that are kept, for each level.
        level: what `choose_level` gave.
    """
    return count_rows(visual, through, torch.tensor(shares, dtype=torch.float64, device=visual.device)[level])


@kept_by_level.register_fake
def _(visual: Tensor, through: bool, shares: Sequence[float], level: Tensor) -> tuple[Tensor, Tensor]:
    return counts_like(visual)


CHOOSE_LEVEL = torch.ops.opskip.choose_level.default
KEPT_BY_LEVEL = torch.ops.opskip.kept_by_level.default
LEVELS = frozenset({CHOOSE_LEVEL, KEPT_BY_LEVEL})
"""All of them: they only compute, and no gradient flows through them."""
