"""The processes of a group run the same code: what they tell each other when a decoder is compiled, and when it runs.

Each process compiles for itself. A pass that fails on one of them, Inductor that can't lower a graph on one machine, or
another schedule in its environment would leave one process with all rows, and the others with some: they would wait
for each other. So each says which exchanges of its graph have kept rows. If one of them says something else, all run
dense.

A prompt without images on one process would have it run, or compile, another graph than the others. So before anything
of a decoder is exchanged each gives one number, of what it is about to do. Where these differ, all of them raise.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx

from opskip_compile._compat import check_on_device, collectives
from opskip_compile.errors import OpSkipError
from opskip_compile.passes.collectives import EXCHANGES, OF_ALL, SAME_ROWS
from opskip_compile.passes.graph.origin import origin

TIMEOUT = datetime.timedelta(minutes=30)  # as long as process groups wait
DENSE = "every row"
TEXT = "no visual row"
COMPILES = "compiles"
_FAILED = "it failed: "
DIFFERENT = (
    "the processes of a group would leave out different rows, so all of them run dense. Schedules, packages and "
    "machines have to be alike; the log of each process says whether something failed there"
)
OTHER_CODE = (
    "opskip: the processes of a group do not run the same code: one of them has other inputs (a prompt without images, "
    "or of another length), or compiles what the others have compiled before. All processes of a tensor-parallel group "
    "have to be given the same prompts in the same order"
)
Compiled = Callable[..., Any]


@dataclass
class Told:
    """What a process tells the others of one graph.

    Attributes:
        groups: names of the groups in which processes exchange values. It has to be the same for all of a group, so it
            depends on the captured graph alone: without a failure they are those of its operators.
        does: each exchange, and the row set that it has; `DENSE` if all of them have every row, `TEXT` without visual
            ones.
        asks: the others compile the same graph now.
        begun: they have said so.
    """

    groups: Sequence[str] = ()
    does: str = DENSE
    asks: bool = True
    device: str | torch.device = "cpu"
    begun: bool = False

    @classmethod
    def of(cls, captured: fx.Graph, inputs: Sequence[Any], asks: bool = True) -> Told:
        """Of a captured graph, of which nothing is known yet."""
        called = [node for node in captured.nodes if collectives.is_collective(node.target)]
        groups = dict.fromkeys(node.args[-1] for node in called if len(node.args) > 1)
        names = tuple(group for group in groups if isinstance(group, str) and collectives.has_others(group))
        return cls(names, asks=asks, device=_device(inputs) if names else "cpu")

    def rewritten(self, graph: fx.Graph | None, groups: Sequence[str], without_rows: bool) -> None:
        """The passes have run: what they made of the graph, the groups of its operators, and if it has no rows.

        Raises:
            OpSkipError: other processes do something else than to compile a graph.
        """
        self.groups = tuple(group for group in groups if group in self.groups)
        said = [node for node in graph.nodes if node.target in (*EXCHANGES, OF_ALL, SAME_ROWS)] if graph else []
        told = [(node, getattr(origin(node), "rows", "")) for node in said]
        if without_rows:
            self.does = TEXT
        elif any(rows or node.target not in EXCHANGES for node, rows in told):
            self.does = "\n".join(f"{node.name} {rows}" for node, rows in told)
        self._begin()

    def is_agreed(self) -> bool:
        """True if all processes say the same. All of them have to ask.

        Raises:
            OpSkipError: another process failed, or has compiled nothing for so long.
        """
        if not self.asks:
            return True
        self._begin()
        agreed = [self._is_agreed(group) for group in self.groups]  # all of them are asked
        return all(agreed)

    def fails(self, error: Exception) -> None:
        """Tell the others, who would wait for this process."""
        self.does = f"{_FAILED}{error}"
        self.is_agreed()

    def meeting(self, run: Compiled, inputs: Sequence[Any], does: str | None = None) -> Compiled:
        """Call a graph, after the processes have told each other that they are about to call the same one.

        Args:
            run: the graph.
            inputs: it was captured with.
            does: what it does, if not what was told of it.
        """
        if not self.groups:
            return run
        does, groups, device = self.does if does is None else does, self.groups, self.device
        sizes = [i for i, value in enumerate(inputs) if _tells_sizes(value)]

        def call(*args: Any) -> Any:
            meet(groups, device, does, *(tuple(args[i].shape) for i in sizes))
            return run(*args)

        return call

    def _begin(self) -> None:
        if self.begun or not self.asks:
            return
        self.begun = True
        for group in self.groups:
            own = _number(COMPILES)
            with self._waiting():
                told = collectives.gathered_within(group, own, self.device, TIMEOUT).tolist()
            if {*told} != {own}:
                self.groups = ()  # nobody is asked any more
                raise OpSkipError(OTHER_CODE)

    def _is_agreed(self, group: str) -> bool:
        with self._waiting():
            told = collectives.told_by_all(group, self.does, TIMEOUT)
        failed = [each.removeprefix(_FAILED) for each in told if each.startswith(_FAILED)]
        if failed and not self.does.startswith(_FAILED):
            raise OpSkipError(f"opskip: another process can't compile this graph: {failed[0]}")
        if TEXT in told and {*told} != {TEXT}:
            raise OpSkipError(OTHER_CODE)
        return {*told} == {self.does}

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            self.groups = ()
            raise OpSkipError(f"opskip: {error}. All processes of a group have to compile the model alike") from error


def meet(groups: Sequence[str], device: str | torch.device, *about: Any) -> None:
    """Go on if all processes of each group are about to do the same.

    Args:
        groups: their names.
        device: of the values that they exchange.
        about: what this process is about to do; texts and numbers.

    Raises:
        RuntimeError: on every process, if one of them does something else. A GPU raises it later, and ends.
    """
    own = _number(*about)
    for group in groups:
        check_on_device((collectives.gathered(group, own, device) == own).all(), OTHER_CODE)


@lru_cache(maxsize=4096)
def _number(*about: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(about).encode()).digest()[:8], "big", signed=True)


def _device(inputs: Sequence[Any]) -> torch.device:
    devices = [value.device for value in inputs if isinstance(value, Tensor)]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def _tells_sizes(value: object) -> bool:
    """True for ids, positions and masks, which processes have alike; of other values each may have its part."""
    return isinstance(value, Tensor) and not collectives.is_spread(value) and not value.is_floating_point()
