"""One step of the server that has visual rows: which rows are left out, and the attention metadata of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opskip_compile._compat import serving
from opskip_compile.errors import OpSkipError
from opskip_compile.integrations.vllm.runs import Runs, runs_of


@dataclass(frozen=True)
class ServedStep:
    """What the attention of one forward has to know of the rows that are kept.

    Attributes:
        rows: the live ones, int64 ``(kept,)``, on the device of the model.
        metadata: by attention layer what their queries attend by; None where no row is kept.
    """

    rows: Tensor
    metadata: Mapping[str, Any]


class Steps:
    """The step that runs. A compiled graph can be told no object, so its operations look here."""

    now: ServedStep | None = None


STEPS = Steps()


class StepMaker:
    """Makes the `ServedStep` of a forward.

    Args:
        config: vLLM's configuration.
        layers: names of the attention layers that keep fewer queries.
    """

    def __init__(self, config: Any, layers: frozenset[str]) -> None:
        self._config, self._layers = config, layers
        self._builders: dict[int, tuple[Any, Any]] = {}  # by the id of vLLM's: itself, and ours

    def make(self, left_out: Tensor, metadata: Mapping[str, Any], device: torch.device) -> ServedStep:
        """The step of a forward with these rows left out.

        Args:
            left_out: bool ``(rows,)`` on the CPU.
            metadata: vLLM's own, by attention layer; empty in a run that only warms up.
            device: of the model.
        """
        mine = {layer: own for layer, own in metadata.items() if layer in self._layers}
        mask = left_out.numpy()
        built = {id(own): self._of_rows(mask, own) for own in {id(own): own for own in mine.values()}.values()}
        kept = torch.from_numpy(np.flatnonzero(~mask[: self.rows_of(metadata)]))
        return ServedStep(kept.to(device, non_blocking=True), {layer: built[id(own)] for layer, own in mine.items()})

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

    def _of_rows(self, left_out: Any, metadata: Any) -> Any:
        builder, common = serving.built_from(metadata)
        runs: Runs = runs_of(left_out, common.query_start_loc_cpu.numpy()[: common.num_reqs + 1])
        if not len(runs.rows):
            return None
        tensors = (
            torch.from_numpy(np.ascontiguousarray(part)) for part in (runs.rows, runs.owners, runs.starts, runs.after)
        )
        fewer = serving.virtual_requests(common, *tensors)
        if id(builder) not in self._builders:
            self._builders[id(builder)] = (builder, serving.another_builder(builder, self._config))
        return self._builders[id(builder)][1].build(0, fewer)
