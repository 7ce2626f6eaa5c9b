"""Several processes, one calibration: who takes which item, and what the others measured (``torch.distributed``).

All processes run the same search; they only share the work on the samples, so each of them has to know every
measurement before it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import distributed


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and how many there are: 0 and 1 without ``torch.distributed``."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def items_of_this_process(items: Sequence[int]) -> list[int]:
    """The items of this process: always the same ones, so that what it recorded is of use again, and about as many for
    each process, of all items and of every second one."""
    rank, world = rank_and_world_size()
    return [i for i in items if i // 2 % world == rank]


def from_others(value: Any) -> Iterator[Any]:
    """What the other processes hand over where this one hands over ``value``."""
    rank, world = rank_and_world_size()
    if world == 1:
        return
    everybody: list[Any] = [None] * world
    distributed.all_gather_object(everybody, value)
    for other, their_value in enumerate(everybody):
        if other != rank:
            yield their_value


def from_first(value: Any) -> Any:
    """The value of the first process, for all."""
    if rank_and_world_size()[1] == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
