"""PyTorch's collectives as Dynamo captures them, and what processes of a group tell each other as they compile."""

from __future__ import annotations

import datetime
import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor, distributed, nn

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


def has_others(name: str) -> bool:
    """True for a group of several processes that really exchange values."""
    group = _group(name)
    return group.size() > 1 and distributed.get_backend(group) != "fake"


def groups_of_weights(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """The groups whose processes have each a part of the weights of ``model``, and the kind of their devices.

    None where FSDP manages the weights: its processes gather them, and have prompts of their own.
    """
    if any(is_fully_sharded(part) for part in model.modules()):
        return ()
    spread = [weight for weight in model.parameters() if is_spread(weight)]
    meshes = [(weight.device_mesh, i) for weight in spread for i in _sharded_dims(weight)]  # type: ignore[attr-defined]
    found = {str(mesh.get_group(i).group_name): str(mesh.device_type) for mesh, i in dict.fromkeys(meshes)}
    return tuple((name, kind) for name, kind in found.items() if has_others(name))


def is_split(model: nn.Module) -> bool:
    """True if processes have each a part of the weights of ``model``: tensor parallel, or FSDP of either kind."""
    if any(is_spread(weight) and _sharded_dims(weight) for weight in model.parameters()):
        return True
    known = sys.modules.get("torch.distributed.fsdp")
    return known is not None and any(isinstance(part, known.FullyShardedDataParallel) for part in model.modules())


def _sharded_dims(weight: Any) -> list[int]:
    return [i for i, placement in enumerate(weight.placements) if not placement.is_replicate()]


def is_fully_sharded(module: nn.Module) -> bool:
    """True for a module whose weights FSDP (``fully_shard``) gathers before its forward, and frees after it."""
    known = sys.modules.get("torch.distributed.fsdp")  # nobody has sharded a module before it is loaded
    return known is not None and isinstance(module, known.FSDPModule)


def gathered(name: str, own: int, device: str | torch.device) -> Tensor:
    """The number that each process of a group gives, int64 ``(processes,)``, in the order of their ranks."""
    return exchanged(ALL_GATHER, torch.full((1,), own, device=device), group_size(name), name)


def gathered_within(name: str, own: int, device: str | torch.device, timeout: datetime.timedelta) -> Tensor:
    """As `gathered`, by processes that compile, which do so at different speeds.

    Raises:
        TimeoutError: another process takes no part in it; the text names it.
    """
    group, store, ranks = _group(name), _store(), _ranks(name)
    arrived = {rank: f"opskip/{_joined(ranks)}/compiles/{rank}" for rank in ranks}
    turn = str(_TOLD[ranks])
    store.set(arrived[distributed.get_rank()], turn)
    everybody = torch.empty(len(ranks), dtype=torch.int64, device=device)
    given = torch.full((1,), own, device=device)
    work = group._allgather_base(everybody, given)  # functions for it change their names between releases
    try:
        work.wait(timeout)
    except Exception as error:
        there = {rank for rank, key in arrived.items() if store.check([key]) and store.get(key).decode() == turn}
        missing = next((rank for rank in ranks if rank not in there), None)
        if missing is None:
            raise
        raise TimeoutError(_missing(missing, ranks, timeout)) from error
    return everybody


def told_by_all(name: str, own: str, timeout: datetime.timedelta) -> list[str]:
    """What each process of a group says, in the order of their ranks.

    Every process of the group has to ask, and waits for the others. No device takes part, and no collective: a process
    that does not ask is named instead of waited for without end.

    Raises:
        TimeoutError: another process has not asked; the text names it.
    """
    ranks, store = _ranks(name), _store()
    _TOLD[ranks] += 1
    keys = [f"opskip/{_joined(ranks)}/{_TOLD[ranks]}/{rank}" for rank in ranks]
    store.set(keys[ranks.index(distributed.get_rank())], own)
    for rank, key in zip(ranks, keys, strict=True):
        try:
            store.wait([key], timeout)
        except Exception as error:
            raise TimeoutError(_missing(rank, ranks, timeout)) from error
    return [store.get(key).decode() for key in keys]


def _ranks(name: str) -> tuple[int, ...]:
    return tuple(distributed.get_process_group_ranks(_group(name)))


def _joined(ranks: tuple[int, ...]) -> str:
    return "-".join(map(str, ranks))


def _missing(rank: int, ranks: tuple[int, ...], timeout: datetime.timedelta) -> str:
    return f"process {rank} of {list(ranks)} has not compiled the same within {timeout}"


def _store() -> Any:
    module: Any = distributed.distributed_c10d
    return module._get_default_store()
