"""PyTorch's collectives as Dynamo captures them, and what the processes of a group tell each other while they compile."""

from __future__ import annotations

import datetime
from collections import Counter
from typing import Any

import torch
from torch import Tensor, distributed

from opskip_compile._compat.operations import is_overload, is_packet, qualified_name

_NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "c10d_functional")
ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, WAIT = (
    getattr(torch.ops._c10d_functional, name).default if distributed.is_available() else None
    for name in ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "wait_tensor")
)
_TOLD: Counter[tuple[int, ...]] = Counter()  # how often a group, named by its ranks, has told something


def name_of(target: object) -> str:
    """The name of an operator, with its library, whether one overload is meant or all of them; else an empty text."""
    return "::".join(qualified_name(target)) if is_overload(target) or is_packet(target) else ""


def is_collective(target: object) -> bool:
    """True for an operation in which several processes take part, in the form in which Dynamo captures it."""
    return name_of(target).partition("::")[0] in _NAMESPACES


def finished(started: Tensor) -> Tensor:
    """What a collective gives, once it has ended."""
    ended: Tensor = WAIT(started)  # type: ignore[misc]
    return ended


def _group(name: str) -> Any:
    return distributed.distributed_c10d._resolve_process_group(name)


def group_size(name: str) -> int:
    """How many processes a group has."""
    return int(_group(name).size())


def told_by_all(name: str, own: str, timeout: datetime.timedelta) -> list[str] | None:
    """What each process of a group says, in the order of their ranks; None for a group of this process alone.

    Every process of the group has to ask, and waits for the others. No device takes part, and no collective: a process
    that does not ask is named instead of waited for without end.

    Raises:
        TimeoutError: another process has not asked; the text names it.
    """
    group = _group(name)
    if group.size() == 1 or distributed.get_backend(group) == "fake":
        return None
    ranks = tuple(distributed.get_process_group_ranks(group))
    _TOLD[ranks] += 1
    store: Any = distributed.distributed_c10d._get_default_store()
    keys = [f"opskip/{'-'.join(map(str, ranks))}/{_TOLD[ranks]}/{rank}" for rank in ranks]
    store.set(keys[ranks.index(distributed.get_rank())], own)
    for rank, key in zip(ranks, keys, strict=True):
        try:
            store.wait([key], timeout)
        except Exception as error:
            raise TimeoutError(f"process {rank} of {list(ranks)} has not compiled the same within {timeout}") from error
    return [store.get(key).decode() for key in keys]


def forget_told() -> None:
    """Count from the start again: the process groups were made anew."""
    _TOLD.clear()
