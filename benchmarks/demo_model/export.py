"""Write the demo model folder: half-precision weights, configuration, tokenizer and image processor.

The folder is filled next to its final place and then swapped in, so a reader never sees half of it.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from opskip_compile.models.packaged.model import DemoProcessor

LARGEST_FOLDER = 10 * 1024 * 1024


def export_model(model: Any, processor: DemoProcessor, folder: Path) -> None:
    """Save `model` in float16 with everything that loads it again; raises `ValueError` past 10 MB."""
    fresh = folder.with_name(folder.name + ".new")
    old = folder.with_name(folder.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    half = copy.deepcopy(model).to("cpu", torch.float16)
    half.config.dtype = torch.float16
    tokenizer = processor.tokenizer
    half.generation_config.update(
        max_new_tokens=1,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    half.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    processor.image_processor.save_pretrained(fresh)
    for file in fresh.iterdir():
        file.chmod(0o644)
    if (size := sum(file.stat().st_size for file in fresh.iterdir())) > LARGEST_FOLDER:
        raise ValueError(f"the exported folder has {size} bytes, more than {LARGEST_FOLDER}")
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON through a temporary file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)
