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


def load(model: str = packaged.NAME, *, device: str | None = None, dtype: str | None = None) -> tuple[Any, Any]:
    """A model of transformers and its processor, as the commands load them: no torchvision needed for pictures.

    Args:
        model: ``"demo"``, the small trained Qwen3-VL that comes with this package, or a folder with weights and
            processor. Nothing is downloaded, and no code in the folder is executed.
        device: where the model goes; a CUDA device if there is one, else the CPU, if not given.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; the checkpoint's own if not given, float32 for the demo.

    Returns:
        The model, in evaluation mode with PyTorch's ``scaled_dot_product_attention`` if it can, and the processor.

    Raises:
        OptionError: there is no such device or dtype.
        OpSkipError: something can't be loaded; names the file that is missing.
    """
    place = usable_device(device, dtype)
    if model == packaged.NAME:
        folder, dtype = packaged.MODEL_DIR, dtype or "float32"
    else:
        folder = _folder(model, False)
    whole, processor = load_checkpoint(folder)
    return whole.to(place) if dtype is None else whole.to(place, getattr(torch, dtype)), processor


def _folder(model: str, download: bool) -> Path:
    path = hub_folder(model) if download and not Path(model).exists() else Path(model)
    read_config(path, "model")
    return path if path.is_dir() else path.parent


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
        whole, processor = load_checkpoint(_folder(model, download))
        encoder = Encoder.of(processor)
    return whole.to(place) if dtype is None else whole.to(place, getattr(torch, dtype)), encoder
