"""What every measurement on a model starts with: the model dense and without dropout, the samples as `Samples`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from opskip_compile._compat.collectives import is_spread
from opskip_compile.api import decompiled
from opskip_compile.calibration import processes
from opskip_compile.calibration.files import FileSamples
from opskip_compile.calibration.option_checks import check_choice, check_count, checked_modalities
from opskip_compile.calibration.samples import InMemorySamples, Samples
from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.models.prompts import Encoder
from opskip_compile.schedule.left_out import ROWS, Rows
from opskip_compile.schedule.modalities import VISUAL, in_words

SampleSource = Sequence[Mapping[str, Any]] | str | os.PathLike[str] | Samples


@contextmanager
def dense(model: nn.Module) -> Iterator[None]:
    """The model dense, in evaluation mode and without gradients until the block ends; then as it was.

    Raises:
        OpSkipError: its weights are spread over processes (``DTensor``), which would have to have the same prompts.
    """
    if processes.rank_and_world_size()[1] > 1 and any(is_spread(weight) for weight in model.parameters()):
        raise OpSkipError(
            f"model: the weights of {type(model).__name__} are spread over the processes, which share the prompts "
            "here: each of them needs the whole model. Load it without a plan or a mesh"
        )
    with decompiled(model), torch.no_grad():
        in_training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            yield
        finally:
            for module in in_training:
                module.training = True


def as_samples(
    model: nn.Module,
    source: SampleSource,
    processor: Any,
    rows: Rows,
    batch: int,
    answer_tokens: int,
    modalities: Sequence[str] | str = VISUAL,
) -> Samples:
    """`Samples` of processor outputs or of a JSONL file; those that are `Samples` already as they are.

    Raises:
        OptionError: a bad option, a file without a processor, or samples that were made for other rows.
    """
    meant = checked_modalities(modalities)
    check_choice("rows", rows, ROWS)
    check_count("answer_tokens", answer_tokens, 1)
    if isinstance(source, Samples):
        if source.rows != rows:
            raise OptionError(f"rows: the samples were made for {source.rows!r}, not {rows!r}")
        if source.modalities != meant:
            raise OptionError(f"modalities: the samples were made for {in_words(source.modalities)}")
        return source
    if isinstance(source, str | os.PathLike):
        if processor is None:
            raise OptionError("processor: needed to read samples from a file")
        return FileSamples(model, source, Encoder.of(processor), rows, answer_tokens, batch, modalities=meant)
    return InMemorySamples(model, source, rows, answer_tokens, meant)
