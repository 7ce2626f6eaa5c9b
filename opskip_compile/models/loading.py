"""The model that a command names, on a device, with what turns prompts into its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from opskip_compile.models.checkpoint import load_checkpoint, read_config
from opskip_compile.models.devices import usable_device
from opskip_compile.models.hub import hub_folder
from opskip_compile.models.packaged import model as packaged
from opskip_compile.models.prompts import Encoder


def load_source(model: str, device: str | None, dtype: str | None, download: bool = False) -> tuple[Any, Encoder]:
    """A model in evaluation mode on a device, and its encoder.

    Args:
        model: ``demo``, or a folder with weights and processor, or with ``download`` a name on a model hub.
        dtype: the model's own if not given.

    Raises:
        OptionError: as `usable_device`. OpSkipError: the model can't be loaded; says what is missing.
    """
    place = usable_device(device, dtype)
    encoder: Encoder
    if model == packaged.NAME:
        whole, encoder = packaged.load_model(), packaged.DemoEncoder(packaged.load_processor())
    else:
        path = hub_folder(model) if download and not Path(model).exists() else Path(model)
        read_config(path, "model")
        whole, processor = load_checkpoint(path if path.is_dir() else path.parent)
        encoder = Encoder.of(processor)
    return whole.to(place) if dtype is None else whole.to(place, getattr(torch, dtype)), encoder
