"""The rows of one step of a server that are still asked, as runs: neighbours of one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Runs:
    """Kept rows of a step.

    Attributes:
        rows: int64 ``(kept,)``, in order.
        owners: int64 ``(runs,)``, the request of each run.
        starts: int32 ``(runs + 1,)``, where each run begins among the kept rows.
        after: int64 ``(runs,)``, how many rows of its request in this step follow a run.
    """

    rows: Array
    owners: Array
    starts: Array
    after: Array


@dataclass(frozen=True)
class Requests:
    """The requests of a step.

    Attributes:
        left_out: by row set how many rows of each are left out, int64 ``(requests,)``.
        keys: how many rows each of them reads, int64 ``(requests,)``.
        whole: True where the step has the whole prompt, bool ``(requests,)``.
    """

    left_out: Mapping[str, Array]
    keys: Array
    whole: Array


def runs_of(left_out: Array, starts: Array) -> Runs:
    """The runs of rows that stay.

    Args:
        left_out: bool ``(rows,)``, True where a row of the step is left out; rows after the last request are padding.
        starts: int ``(requests + 1,)``, where each request begins among the rows.
    """
    kept = np.flatnonzero(~left_out[: starts[-1]])
    request = np.searchsorted(starts[1:], kept, side="right")
    new = np.ones(len(kept), bool)
    new[1:] = (np.diff(kept) != 1) | (np.diff(request) != 0)
    first = np.flatnonzero(new)
    bounds = np.append(first, len(kept))
    owners = request[first]
    after = starts[owners + 1] - 1 - kept[bounds[1:] - 1]
    return Runs(kept, owners, bounds.astype(np.int32), after.astype(np.int64))
