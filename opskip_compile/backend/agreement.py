"""The processes of a group run the same code: what they tell each other whenever a graph is compiled.

Each process compiles for itself. A pass that fails on one of them, Inductor that can't lower a graph on one machine, or
another schedule in its environment would leave one process with all rows, and the others with some: they would wait
for each other. So each says which exchanges of its graph have kept rows. If one of them says something else, all run
dense.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from torch import fx

from opskip_compile._compat import collectives
from opskip_compile.errors import OpSkipError
from opskip_compile.passes.collectives import EXCHANGES
from opskip_compile.passes.graph.origin import origin

TIMEOUT = datetime.timedelta(minutes=30)
DENSE = "every row"
FAILED = "it failed: "
DIFFERENT = (
    "the processes of a group would leave out different rows, and all run dense. Their schedules and versions have to "
    "be the same; the log of each process says whether it failed to compile"
)


def groups_of(captured: fx.Graph) -> list[str]:
    """The names of the groups in which processes exchange values in a graph, in order, once each."""
    called = [node for node in captured.nodes if collectives.is_collective(node.target)]
    return list(dict.fromkeys(str(node.args[-1]) for node in called if node.args and isinstance(node.args[-1], str)))


def exchanges(graph: fx.Graph | None) -> str:
    """What a process says of a rewritten graph: each exchange, and the row set that it has; `DENSE` without a graph."""
    if graph is None:
        return DENSE
    found = [f"{node.name} {getattr(origin(node), 'rows', '')}" for node in graph.nodes if node.target in EXCHANGES]
    return "\n".join(found)


def agree(groups: Sequence[str], own: str) -> bool:
    """True if all processes of all ``groups`` say the same.

    Raises:
        OpSkipError: another process failed, or has compiled nothing for so long.
    """
    same = True
    for group in groups:
        try:
            told = collectives.told_by_all(group, own, TIMEOUT)
        except TimeoutError as error:
            raise OpSkipError(f"opskip: {error}. All processes of a group have to compile the model alike") from error
        failed = [] if own.startswith(FAILED) else [each for each in told or () if each.startswith(FAILED)]
        if failed:
            raise OpSkipError(f"opskip: another process can't compile this graph: {failed[0].removeprefix(FAILED)}")
        same = same and len({own, *(told or ())}) == 1
    return same
