"""Several processes, one calibration: who takes which item, and what the others found (``torch.distributed``).

All processes run the same search; they only share the work on the samples, so each of them has to know every
measurement before it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import distributed


def place() -> tuple[int, int]:
    """Rank of this process and how many there are: 0 and 1 without ``torch.distributed``."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def own(items: Sequence[int]) -> list[int]:
    """The items of this process: always the same ones, so that what it recorded is of use again, and about as many for
    each process, of all items and of every second one."""
    rank, world = place()
    return [i for i in items if i // 2 % world == rank]


def from_others(made: Any) -> Iterator[Any]:
    """What the other processes put in where this one puts ``made``."""
    rank, world = place()
    if world == 1:
        return
    everybody: list[Any] = [None] * world
    distributed.all_gather_object(everybody, made)
    for other, found in enumerate(everybody):
        if other != rank:
            yield found


def of_first(value: Any) -> Any:
    """The value of the first process, for all."""
    if place()[1] == 1:
        return value
    found = [value]
    distributed.broadcast_object_list(found, src=0)
    return found[0]
