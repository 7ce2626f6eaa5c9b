"""Exchanges between processes as functions of one value, and the check that all processes select the same rows.

PyTorch captures a collective as two operations, one that starts it and one that waits. Between the two nothing may be
read, so a selection must not get there: here both are one function. Like the selections, these functions are plain
Python that AOTAutograd traces through, and Inductor sees PyTorch's own collectives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from opskip_compile._compat import check_on_device, collectives

DIFFERENT = (
    "opskip: the processes of a group have different visual rows, or schedules. All processes of a tensor-parallel "
    "group have to be given the same prompts"
)
_ODD = -7046029254386353131  # 2**64 / golden ratio, an odd number: different rows give different sums


def all_reduce(x: Tensor, reduce_op: str, group_name: str) -> Tensor:
    """``x`` of all processes, combined element by element; every process gets the result."""
    return collectives.exchanged(collectives.ALL_REDUCE, x, reduce_op, group_name)


def reduce_scatter(x: Tensor, reduce_op: str, group_size: int, group_name: str) -> Tensor:
    """As `all_reduce`, of which each process gets its part along dimension 0."""
    return collectives.exchanged(collectives.REDUCE_SCATTER, x, reduce_op, group_size, group_name)


def all_gather(x: Tensor, group_size: int, group_name: str) -> Tensor:
    """``x`` of all processes, one after the other along dimension 0."""
    return collectives.exchanged(collectives.ALL_GATHER, x, group_size, group_name)


@torch.library.custom_op("opskip::same_rows", mutates_args=())
def same_rows(visual: Tensor, plan: int, group_name: str) -> Tensor:
    """A copy of ``visual`` if all processes have the same, and leave the same out.

    Else processes would exchange different numbers of rows, and wait for each other or mix up rows. What is compared is
    five numbers a process, so that masks of different sizes are told apart, too.

    Args:
        visual: bool ``(batch, sequence)``, True where a row is visual.
        plan: a number that stands for all that is left out.
        group_name: of the processes that exchange rows.

    Raises:
        RuntimeError: on every process, if they differ. A GPU raises it later, before it exchanges rows, and ends.
    """
    weights = torch.arange(1, visual.numel() + 1, device=visual.device) * _ODD
    mixed = (weights ^ (weights >> 29)) * visual.flatten()
    given = torch.tensor([*visual.shape, plan], device=visual.device)
    own = torch.cat([given, visual.sum().view(1), mixed.sum().view(1)])
    everybody = all_gather(own, collectives.group_size(group_name), group_name).view(-1, len(own))
    check_on_device((everybody == own).all(), DIFFERENT)
    return visual.clone()


@same_rows.register_fake
def _(visual: Tensor, plan: int, group_name: str) -> Tensor:
    return torch.empty_like(visual)


@torch.library.custom_op("opskip::of_all", mutates_args=())
def of_all(x: Tensor, mean: bool, group_name: str) -> Tensor:
    """What all processes choose rows by: the same on each of them to the last bit.

    Args:
        x: of this process.
        mean: the mean over all processes, of which each knows a part; else what the first one has.
        group_name: of the processes.
    """
    size = collectives.group_size(group_name)
    everybody = all_gather(x.contiguous(), size, group_name).view(size, *x.shape)
    return everybody.mean(0) if mean else everybody[0].clone()


@of_all.register_fake
def _(x: Tensor, mean: bool, group_name: str) -> Tensor:
    return torch.empty_like(x)


# Which rows are chosen is no function that could be differentiated.
of_all.register_autograd(lambda ctx, gradient: (None,) * 3)
OF_ALL = torch.ops.opskip.of_all.default
SAME_ROWS = torch.ops.opskip.same_rows.default
EXCHANGES: tuple[Callable[..., Tensor], ...] = (all_reduce, reduce_scatter, all_gather)
