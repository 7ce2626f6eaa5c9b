"""Several processes, one piece of work: who takes which item, and what the others found (``torch.distributed``).

All processes go the same way; they only share the work on the items, so each of them has to know every measurement
before it goes on. There is one kind of exchange, and it carries errors too: what fails in one process is raised in all
of them when they next exchange something, so that none waits for one that is not coming.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, TypeVar

from torch import distributed

from opskip_compile.errors import OpSkipError, in_one_line

Value = TypeVar("Value")
_TOGETHER: ContextVar[bool] = ContextVar("opskip_together", default=False)


class _ToldError(OpSkipError):
    """What another process has failed with."""


class _LostError(OpSkipError):
    """The processes can't reach each other any more."""


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


def exchanged(value: Any) -> list[Any]:
    """What all processes hand over, by rank, this one ``value``. All of them have to call it.

    Raises:
        OpSkipError: another process has failed, and says with what, or it has ended.
    """
    return _exchanged(value, "")


def from_others(value: Any) -> list[Any]:
    """What the other processes hand over where this one hands over ``value``. Raises as `exchanged`."""
    rank, _ = rank_and_world_size()
    return [theirs for other, theirs in enumerate(exchanged(value)) if other != rank]


def by_first(make: Callable[[], Value]) -> Value:
    """What ``make`` gives in the first process, for all; the others wait. Raises as `exchanged`."""
    made: Value = exchanged(make() if rank_and_world_size()[0] == 0 else None)[0]
    return made


def check_alike(facts: Mapping[str, Any]) -> None:
    """See that all processes start from the same facts, by name.

    Raises:
        OpSkipError: names the first one that differs, in every process.
    """
    everybody = exchanged(dict(facts))
    for name in facts:
        for rank, theirs in enumerate(everybody):
            if theirs.get(name) != everybody[0].get(name):
                raise OpSkipError(
                    f"{name}: process 0 has {everybody[0].get(name)!r} and process {rank} {theirs.get(name)!r}; "
                    "processes that share the work need the same"
                )


class Together:
    """A block that ends in all processes alike: an exception in one of them is raised in every other one, when it next
    exchanges something or at its end of the block. A block inside another one is a part of it.

    Attributes:
        told: whether the others, and so the first process, have been told of the exception that ended the block.
    """

    def __init__(self) -> None:
        self.told = False
        self._outermost: Token[bool] | None = None

    def __enter__(self) -> Together:
        if not _TOGETHER.get():
            self._outermost = _TOGETHER.set(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._outermost is None:
            return
        _TOGETHER.reset(self._outermost)
        if error is None:
            try:
                exchanged(None)
            except _ToldError:
                self.told = True
                raise
        elif isinstance(error, _ToldError):
            self.told = True
        elif isinstance(error, Exception) and not isinstance(error, _LostError):
            try:
                _exchanged(None, _in_words(error))
                self.told = True
            except OpSkipError:
                pass  # nobody is there any more; what failed first is what counts


def _exchanged(value: Any, failed: str) -> list[Any]:
    _, world = rank_and_world_size()
    if world == 1:
        return [value]
    everybody: list[Any] = [None] * world
    try:
        distributed.all_gather_object(everybody, (value, failed))
    except RuntimeError as error:
        raise _LostError(f"another process has ended or does not answer: {in_one_line(error)}") from error
    for other, (_, theirs) in enumerate(everybody):
        if theirs and not failed:
            raise _ToldError(f"process {other}: {theirs}")
    return [theirs for theirs, _ in everybody]


def _in_words(error: Exception) -> str:
    text = str(error) if isinstance(error, OpSkipError) else f"{type(error).__name__}: {in_one_line(error)}"
    return "; ".join([text or type(error).__name__, *getattr(error, "__notes__", ())])
