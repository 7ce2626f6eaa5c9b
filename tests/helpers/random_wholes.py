"""Whole multimodal models on the whole real path: ``opskip.compile``, ``torch.compile`` and ``model.compile``.

The schedule is part of what was compiled, so here it belongs to the model; the cases differ in their prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

import opskip_compile as opskip
from opskip_compile.backend.reports import REPORTS
from tests.helpers.caches import CACHE
from tests.helpers.families import FAMILIES, visual_mask
from tests.helpers.leveled import skipping
from tests.helpers.random_decoders import Case, Ran, Skipped
from tests.helpers.random_layouts import random_schedule

LAYERS = 3


class Whole:
    """One of the tiny models of the package, with images."""

    def __init__(self, rng: Random) -> None:
        self.name = rng.choice(sorted(FAMILIES))
        self.family, self.layers = FAMILIES[self.name], LAYERS
        self.model = self.family.build(LAYERS)
        way = rng.choice(("opskip.compile", "opskip.compile", "torch.compile", "model.compile"))
        self.schedule = random_schedule(rng, LAYERS)
        self.traits = {"way": way, "cache": "dynamic", "batch": "1-3"}
        self.count, options = REPORTS.count, {"schedule": self.schedule, "lower": "eager"}
        self.call: Any = self.model
        if way == "opskip.compile":
            opskip.compile(self.model, options=options)
        elif way == "model.compile":
            self.model.compile(backend="opskip", options=options)
        else:
            self.call = torch.compile(self.model, backend="opskip", options=options)

    def draw(self, rng: Random) -> Case:
        """Two to four numbers of text rows for each element, so at least one image; the seed is the prompt's."""
        seed = rng.randint(0, 10**6)
        visual, shown = self._masks(seed)
        return Case(self.schedule, visual, shown, (visual.shape[1],), seed)

    def _inputs(self, seed: int) -> dict[str, Tensor]:
        rng = Random(seed)
        layout = tuple(
            tuple(rng.randint(1, 6) for _ in range(rng.choice((2, 2, 3)))) for _ in range(rng.choice((1, 2, 3)))
        )
        return self.family.inputs(layout, seed % 1000)

    def _masks(self, seed: int) -> tuple[Tensor, Tensor]:
        inputs = self._inputs(seed)
        return visual_mask(inputs), inputs["attention_mask"].bool()

    def run(self, case: Case) -> Ran:
        values, masks = self._call(self.call, case)
        reports = [report for report in REPORTS.since(self.count) if report.operators]
        sets = {tuple(op.name for op in report.operators if op.skipped) for report in reports}
        assert len(sets) == 1, f"graphs of one model skip different operators: {sets}"
        return Ran(values, masks, reports[-1:])

    def want(self, case: Case, skipped: Sequence[Skipped]) -> list[Tensor]:
        put_back = self._take_off()
        try:
            with opskip.oracle(self.model, skipping(skipped[0], case.schedule), case.visual):
                return self._call(self.model, case)[0]
        finally:
            put_back()

    def _take_off(self) -> Any:
        """Let the model run dense for a while, whichever way it was compiled."""
        state = vars(self.model).get("_opskip_compiled")
        if state is not None:
            return state.detach()
        call, self.model._compiled_call_impl = self.model._compiled_call_impl, None
        return lambda: setattr(self.model, "_compiled_call_impl", call)

    def _call(self, model: Any, case: Case) -> tuple[list[Tensor], list[Tensor | None]]:
        outputs = model(**self._inputs(case.seed))
        kept = [t.transpose(1, 2) for layer in outputs[CACHE].layers for t in (layer.keys, layer.values)]
        values = [outputs.logits, *kept]
        return values, [case.shown] * len(values)
