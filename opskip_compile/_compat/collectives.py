"""PyTorch's collectives as Dynamo captures them, and what processes of a group tell each other as they compile."""

from __future__ import annotations

import datetime
import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor, distributed

from opskip_compile._compat.operations import is_overload, is_packet, qualified_name

_NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "c10d_functional")
ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, WAIT = (
    f"{_NAMESPACES[0]}::{name}"
    for name in ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "wait_tensor")
)
_TOLD: Counter[tuple[int, ...]] = Counter()  # how often a group, named by its ranks, has told something


def name_of(target: object) -> str:
    """The name of an operator, with its library, whether one overload is meant or all of them; else an empty text."""
    return "::".join(qualified_name(target)) if is_overload(target) or is_packet(target) else ""


def is_collective(target: object) -> bool:
    """True for an operation in which several processes take part, in the form in which Dynamo captures it."""
    return name_of(target).partition("::")[0] in _NAMESPACES


def exchanged(name: str, *args: Any) -> Tensor:
    """What a collective gives, of one of the names above, once it has ended."""
    started = getattr(torch.ops._c10d_functional, name.partition("::")[2])(*args)
    ended: Tensor = torch.ops._c10d_functional.wait_tensor(started)
    return ended


def _group(name: str) -> Any:
    module: Any = distributed.distributed_c10d
    return module._resolve_process_group(name)


def is_spread(value: object) -> bool:
    """True for a ``DTensor``, of which each process of a mesh has its part."""
    known = sys.modules.get("torch.distributed.tensor")  # nobody has made one before it is loaded
    return known is not None and isinstance(value, known.DTensor)


def group_of_shards(value: Tensor | None, dim: int) -> str | None:
    """The group whose processes have equal parts of ``value`` along ``dim``, and the whole of every other dimension.

    None for what is no ``DTensor``, or is spread in another way.
    """
    if not is_spread(value):
        return None
    from torch.distributed.tensor import DTensor, Replicate, Shard

    assert isinstance(value, DTensor)
    spread = [(i, each) for i, each in enumerate(value.placements) if not isinstance(each, Replicate)]
    if len(spread) != 1 or type(spread[0][1]) is not Shard or spread[0][1].dim != dim:
        return None
    mesh, at = value.device_mesh, spread[0][0]
    return str(mesh.get_group(at).group_name) if value.shape[dim] % mesh.size(at) == 0 else None


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
    module: Any = distributed.distributed_c10d
    store = module._get_default_store()
    keys = [f"opskip/{'-'.join(map(str, ranks))}/{_TOLD[ranks]}/{rank}" for rank in ranks]
    store.set(keys[ranks.index(distributed.get_rank())], own)
    for rank, key in zip(ranks, keys, strict=True):
        try:
            store.wait([key], timeout)
        except Exception as error:
            raise TimeoutError(f"process {rank} of {list(ranks)} has not compiled the same within {timeout}") from error
    return [store.get(key).decode() for key in keys]
