"""One step of the server that has visual rows: which rows are left out, and the attention metadata of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opskip_compile._compat import serving
from opskip_compile.errors import OpSkipError
from opskip_compile.integrations.vllm.runs import Runs, runs_of


@dataclass
class ServedStep:
    """What the attention of one forward has to know of its row sets.

    Attributes:
        rows: by row set the live rows, int64 ``(kept,)``, on the device of the model.
        metadata: by row set and attention layer what its kept queries attend by; None where no row is kept.
    """

    rows: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)

    def metadata_of(self, rows: str, layer: str) -> Any:
        """The metadata of one attention layer for the kept rows of a set."""
        return self.metadata[rows].get(layer)


class Steps:
    """The step that runs. A compiled graph can be told no object, so its operations look here."""

    now: ServedStep | None = None


STEPS = Steps()


class StepMaker:
    """Makes the `ServedStep` of a forward.

    Args:
        config: vLLM's configuration.
        layers: names of the attention layers of the decoder.
    """

    def __init__(self, config: Any, layers: frozenset[str]) -> None:
        self._config, self._layers = config, layers
        self._builders: dict[int, Any] = {}

    def make(self, left_out: Mapping[str, Tensor], metadata: Mapping[str, Any], device: torch.device) -> ServedStep:
        """The step of a forward with these rows left out.

        Args:
            left_out: by row set, bool ``(rows,)`` on the CPU.
            metadata: vLLM's own, by attention layer; empty in a run that only warms up.
            device: of the model.
        """
        step = ServedStep()
        for name, mask in left_out.items():
            mine = {layer: own for layer, own in metadata.items() if layer in self._layers}
            built: dict[int, Any] = {}
            for own in mine.values():
                if id(own) not in built:
                    built[id(own)] = self._of_rows(mask.numpy(), own)
            step.metadata[name] = {layer: built[id(own)] for layer, own in mine.items()}
            kept = torch.from_numpy(np.flatnonzero(~mask.numpy()[: self.rows_of(metadata)]))
            step.rows[name] = kept.to(device, non_blocking=True)
        return step

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
            self._builders[id(builder)] = serving.another_builder(builder, self._config)
        return self._builders[id(builder)].build(0, fewer)
