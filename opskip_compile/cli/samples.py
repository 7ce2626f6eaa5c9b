"""What ``calibrate`` and ``diagnose`` start from: a model and its samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from opskip_compile.cli.options import LIMIT

if TYPE_CHECKING:
    from opskip_compile.calibration.config import CalibrationConfig
    from opskip_compile.calibration.samples import Samples
    from opskip_compile.output.progress import Step


def model_and_samples(
    model: str,
    data: Path | None,
    config: CalibrationConfig,
    limit: int | None,
    seed: int,
    device: str | None,
    dtype: str | None,
    step: Step,
) -> tuple[Any, Samples]:
    """The model and its samples; what can be wrong with a file is found before the weights are read."""
    from opskip_compile.calibration.files import FileSamples
    from opskip_compile.demo.samples import DemoSamples
    from opskip_compile.errors import OptionError
    from opskip_compile.models.devices import usable_device
    from opskip_compile.models.jsonl import read_lines
    from opskip_compile.models.loading import load_source
    from opskip_compile.models.packaged.model import NAME

    usable_device(device, dtype)
    if limit is not None and limit < 1:
        raise OptionError(f"limit: expected at least 1, got {limit}")
    if data is not None:
        step("reading the file", 0, 0)
        read_lines(data)
    elif model != NAME:
        raise OptionError(
            "data: needed for a model of your own: a JSONL file with image (or audio) and prompt on each line"
        )
    step("loading the model", 0, 0)
    whole, encoder = load_source(model, device, dtype, download=True)
    if data is None:
        return whole, DemoSamples(whole, encoder.processor, limit or LIMIT, seed, config.rows)
    tokens, modalities = 1 if model == NAME else config.answer_tokens, tuple(config.modalities)
    return whole, FileSamples(whole, data, encoder, config.rows, tokens, config.batch, limit, modalities)
