"""One step of the server that has visual rows: which rows are left out, and the attention metadata of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opskip_compile._compat import serving
from opskip_compile.errors import OpSkipError
from opskip_compile.integrations.vllm.runs import Requests, Runs, runs_of


@dataclass(frozen=True)
class ServedStep:
    """What the attention of one forward has to know of the rows that are kept.

    Attributes:
        kept: by row set the rows outside of it, int64 ``(kept,)``, on the device of the model.
        metadata: by attention layer what their queries attend by; None where no row is kept.
        chosen: the same of a layer for rows that the graph chooses, int64 ``(n,)`` in order.
    """

    kept: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    chosen: Callable[[str, Tensor], Any] = lambda layer, rows: None


class Steps:
    """The step that runs. A compiled graph can be told no object, so its operations look here."""

    now: ServedStep | None = None


STEPS = Steps()


class StepMaker:
    """Makes the `ServedStep` of a forward.

    Args:
        config: vLLM's configuration.
        layers: the attention layers that ask fewer queries, and the row set that each of them leaves out.
    """

    def __init__(self, config: Any, layers: Mapping[str, str]) -> None:
        self._config, self._layers = config, layers
        self._builders: dict[tuple[int, str], tuple[Any, Any]] = {}  # by id of vLLM's and set: it, ours

    def make(self, left_out: Mapping[str, Tensor], metadata: Mapping[str, Any], device: torch.device) -> ServedStep:
        """The step of a forward with these rows left out.

        Args:
            left_out: by row set bool ``(rows,)`` on the CPU.
            metadata: vLLM's own, by attention layer; empty in a run that only warms up.
            device: of the model.
        """
        rows = self.rows_of(metadata)
        kept = {name: torch.from_numpy(np.flatnonzero(~mask.numpy()[:rows])) for name, mask in left_out.items()}
        built: dict[tuple[int, str], Any] = {}
        found = {}
        for layer, name in self._layers.items():
            own = metadata.get(layer)
            if own is not None:
                key = id(own), name
                if key not in built:
                    built[key] = self._of_rows(left_out[name].numpy(), own, name)
                found[layer] = built[key]
        on_device = {name: one.to(device, non_blocking=True) for name, one in kept.items()}
        return ServedStep(on_device, found, partial(self._chosen, metadata))

    def _chosen(self, metadata: Mapping[str, Any], layer: str, rows: Tensor) -> Any:
        own = metadata.get(layer)
        if own is None:
            return None
        numbers = rows.cpu().numpy()
        left_out = np.ones(max(numbers[-1] + 1, self.rows_of({layer: own}) or 0), bool)
        left_out[numbers] = False
        return self._of_rows(left_out, own, "chosen")

    def check(self, mask: Tensor, metadata: Mapping[str, Any]) -> None:
        """Make sure that these visual rows are those of this step.

        Raises:
            OpSkipError: it has another number of rows.
        """
        asked = self.rows_of(metadata)
        if asked not in (None, len(mask)):
            raise OpSkipError(f"opskip: visual rows of another step: {len(mask)} rows, and {asked} are asked")

    def rows_of(self, metadata: Mapping[str, Any]) -> int | None:
        """Rows of the step without padding; None where no metadata says it."""
        for own in metadata.values():
            if serving.is_remembered(own):
                common = serving.built_from(own)[1]
                return int(common.query_start_loc_cpu[common.num_reqs])
        return None

    def by_request(
        self, left_out: Mapping[str, Tensor], metadata: Mapping[str, Any], whole: Sequence[bool] = ()
    ) -> Requests | None:
        """How many rows each request of the step leaves out; None where no metadata says where they begin.

        ``whole`` says of each whether the step has its whole prompt.
        """
        for own in metadata.values():
            if serving.is_remembered(own):
                starts, keys = serving.requests_of(serving.built_from(own)[1])
                sums = {name: np.append(0, np.cumsum(mask.numpy())) for name, mask in left_out.items()}
                rows = {name: one[starts[1:]] - one[starts[:-1]] for name, one in sums.items()}
                return Requests(rows, keys, np.array(whole or [False] * len(keys)))
        return None

    def _of_rows(self, left_out: Any, metadata: Any, name: str) -> Any:
        builder, common = serving.built_from(metadata)
        runs: Runs = runs_of(left_out, common.query_start_loc_cpu.numpy()[: common.num_reqs + 1])
        if not len(runs.rows):
            return None
        tensors = (
            torch.from_numpy(np.ascontiguousarray(part)) for part in (runs.rows, runs.owners, runs.starts, runs.after)
        )
        fewer = serving.virtual_requests(common, *tensors)
        key = id(builder), name
        if key not in self._builders:
            self._builders[key] = (builder, serving.another_builder(builder, self._config))
        return self._builders[key][1].build(0, fewer)
