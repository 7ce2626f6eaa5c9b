"""A model as in one run of an evaluation: compiled with its schedule, with tokens dropped or pruned, or both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn

from opskip_compile.api import compile as compile_model
from opskip_compile.api import remove
from opskip_compile.evaluation.dropping import dropping_tokens
from opskip_compile.evaluation.pruning import pruning_tokens
from opskip_compile.evaluation.runs import EvaluationRun
from opskip_compile.schedule.modalities import VISUAL


@contextmanager
def running(model: nn.Module, run: EvaluationRun, lower: str, modalities: tuple[str, ...] = VISUAL) -> Iterator[None]:
    """The model as in one run, until the block ends.

    Args:
        model: dense and eager.
        run: what to do.
        lower: as in `Settings`, for runs with a schedule.
        modalities: whose rows count as visual.
    """
    if run.schedule is None:
        assert run.dropping is not None
        with dropping_tokens(model, run.dropping, modalities):
            yield
        return
    with nullcontext() if run.dropping is None else pruning_tokens(model, run.dropping, modalities):
        compile_model(model, run.schedule, prefill_only=True, options={"lower": lower})
        try:
            yield
        finally:
            remove(model)
