"""The folder of a trained model: 16-bit weights, configuration, tokenizer and image processor.

Beside them lie the heads that read cell labels in training. Nothing that runs the model needs them; a run that begins
with the folder does.
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.vqa.architectures import Kit

HEADS_FILE = "training_heads.safetensors"
LARGEST = 12 * 1024 * 1024
LONGEST_ANSWER = 8


def export_model(model: Any, heads: nn.Module, kit: Kit, folder: Path) -> None:
    """Save `model` in float16 with everything that loads it again; raises `ValueError` past 12 MB.

    The folder is filled next to its final place and then swapped in, so a reader never sees half of it.
    """
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    half = copy.deepcopy(model).to("cpu", torch.float16)
    half.config.dtype = torch.float16
    half.generation_config.update(
        max_new_tokens=LONGEST_ANSWER,
        do_sample=False,
        pad_token_id=kit.tokenizer.pad_token_id,
        bos_token_id=kit.tokenizer.bos_token_id,
        eos_token_id=kit.tokenizer.eos_token_id,
    )
    half.save_pretrained(fresh)
    kit.tokenizer.save_pretrained(fresh)
    kit.image_processor.save_pretrained(fresh)
    save_file({name: value.to(torch.float16) for name, value in heads.state_dict().items()}, fresh / HEADS_FILE)
    for file in fresh.iterdir():
        file.chmod(0o644)
    if (size := sum(file.stat().st_size for file in fresh.iterdir())) > LARGEST:
        raise ValueError(f"the exported folder has {size} bytes, more than {LARGEST}")
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
