"""The files of a checkpoint folder of transformers, and which of them is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opskip_compile.errors import OpSkipError

CONFIG = "config.json"
PROCESSOR = "processor_config.json"
IMAGES = "preprocessor_config.json"
TOKENIZER = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_VOCABULARY = "tokenizer.json"
_VOCABULARIES = (_VOCABULARY, "*.model", "vocab.*", "*.vocab", "*.tiktoken", "tekken.json")
_POINTER = b"version https://git-lfs"  # what Git leaves in place of a large file that was not fetched


def read_table(file: Path) -> dict[str, Any]:
    """The table in a JSON file; empty where there is no such file.

    Raises:
        OpSkipError: names the file, if it can't be read as one.
    """
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise OpSkipError(f"model: {str(file)!r} can't be read: {error}") from error
    if not isinstance(table, dict):
        raise OpSkipError(f"model: {str(file)!r} holds no table")
    return table


def check_processor_files(folder: Path) -> None:
    """Of what a processor is built from, the files without which transformers goes on with something else.

    Raises:
        OpSkipError: names the first one that is missing.
    """
    if not any(True for pattern in _VOCABULARIES for _ in folder.glob(pattern)):
        raise OpSkipError(f"model: there is no file {str(folder / _VOCABULARY)!r}: the tokenizer is missing")
    there = {"image_processor", "feature_extractor", "audio_processor"} & {*read_table(folder / PROCESSOR)}
    if not (folder / IMAGES).is_file() and not there:
        raise OpSkipError(f"model: there is no file {str(folder / IMAGES)!r}: the image processor is missing")


def missing_weights(folder: Path) -> str | None:
    """What is missing of a folder's weights, in words; None if every file is there."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        files = [folder / name]
        if index.is_file():
            shards = read_table(index).get("weight_map")
            names = shards.values() if isinstance(shards, dict) else ()
            files = [folder / str(shard) for shard in dict.fromkeys(names)]
        absent = [file for file in files if not file.is_file()]
        if index.is_file() and absent:
            return f"there is no file {str(absent[0])!r}, which {index.name} names"
        if not absent:
            pointers = [file for file in files if _is_pointer(file)]
            return f"{str(pointers[0])!r} is a pointer of Git LFS: git lfs pull fetches the file" if pointers else None
    return f"there is no file {str(folder / _WEIGHTS[0])!r}: the weights are missing"


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(len(_POINTER)) == _POINTER
