"""The processes of a group run the same code: what they tell each other whenever a decoder is compiled.

Each process compiles for itself. A pass that fails on one of them, Inductor that can't lower a graph on one machine, or
another schedule in its environment would leave one process with all rows, and the others with some: they would wait
for each other. So each says which exchanges of its graph have kept rows. If one of them says something else, all run
dense.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from opskip_compile._compat import collectives
from opskip_compile.errors import OpSkipError
from opskip_compile.passes.collectives import EXCHANGES, OF_ALL, SAME_ROWS
from opskip_compile.passes.graph.origin import origin

TIMEOUT = datetime.timedelta(minutes=30)  # as long as process groups wait
DENSE = "every row"
_FAILED = "it failed: "
DIFFERENT = (
    "the processes of a group would leave out different rows, so all of them run dense. Schedules, packages and "
    "machines have to be alike; the log of each process says whether something failed there"
)


@dataclass
class Told:
    """What a process tells the others of one graph.

    Attributes:
        groups: names of the groups in which processes exchange values. It has to be the same for all of a group, so it
            depends on the captured graph alone: without a failure they are those of its operators.
        does: each exchange, and the row set that it has; `DENSE` if nothing is rewritten.
    """

    groups: Sequence[str] = ()
    does: str = DENSE

    @classmethod
    def of(cls, captured: fx.Graph) -> Told:
        """Of a captured graph, of which nothing is known yet."""
        called = [node for node in captured.nodes if collectives.is_collective(node.target)]
        groups = [node.args[-1] for node in called if len(node.args) > 1]
        return cls(tuple(dict.fromkeys(group for group in groups if isinstance(group, str))))

    def rewritten(self, graph: fx.Graph | None, groups: Sequence[str]) -> None:
        """The passes have run: what they made of the graph, and the groups of its operators."""
        self.groups = tuple(group for group in groups if group in self.groups)
        if graph is not None:
            said = [node for node in graph.nodes if node.target in (*EXCHANGES, OF_ALL, SAME_ROWS)]
            self.does = "\n".join(f"{node.name} {getattr(origin(node), 'rows', '')}" for node in said)

    def is_agreed(self) -> bool:
        """True if all processes say the same. All of them have to ask.

        Raises:
            OpSkipError: another process failed, or has compiled nothing for so long.
        """
        agreed = [self._is_agreed(group) for group in self.groups]  # all of them are asked
        return all(agreed)

    def _is_agreed(self, group: str) -> bool:
        try:
            told = collectives.told_by_all(group, self.does, TIMEOUT) or [self.does]
        except TimeoutError as error:
            raise OpSkipError(f"opskip: {error}. All processes of a group have to compile the model alike") from error
        failed = [each.removeprefix(_FAILED) for each in told if each.startswith(_FAILED)]
        if failed and not self.does.startswith(_FAILED):
            raise OpSkipError(f"opskip: another process can't compile this graph: {failed[0]}")
        return set(told) == {self.does}

    def fails(self, error: Exception) -> None:
        """Tell the others, who would wait for this process."""
        self.does = f"{_FAILED}{error}"
        self.is_agreed()
