"""Write examples of one task as PNG files and a `data.jsonl` that names them.

python -m benchmarks.vqa.export --task NAME --split test --count N --out DIR

A line holds `image` (one file) or `images` (a list of two), `prompt`, `answer` and `task`; paths are relative to the
`data.jsonl`. It is written after the images, so a folder that has one is complete.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.vqa.base import SPLITS, Split, Task
from benchmarks.vqa.tasks import TASKS
from opskip_compile.errors import OpSkipError
from opskip_compile.output.files import write_whole


def export(task: Task, split: Split, count: int, folder: Path) -> Path:
    """Write the first `count` examples of a split; returns the path of the `data.jsonl`.

    Raises:
        ValueError: the split has fewer examples.
        OpSkipError: a file can't be written.
    """
    if not 1 <= count <= task.size(split):
        raise ValueError(f"{task.name} has {task.size(split)} {split} examples, so not {count}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OpSkipError(f"{folder}: can't be made: {error.strerror}") from error
    lines = []
    for index in range(count):
        example = task.example(split, index)
        names = []
        for number, image in enumerate(example.images, start=1):
            suffix = f"-{number}" if len(example.images) > 1 else ""
            names.append(f"{task.name}-{split}-{index:06d}{suffix}.png")
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            write_whole(folder / names[-1], file.getvalue())
        line: dict[str, Any] = {"image": names[0]} if len(names) == 1 else {"images": names}
        lines.append(json.dumps({**line, "prompt": example.question, "answer": example.answer, "task": task.name}))
    data = folder / "data.jsonl"
    write_whole(data, "\n".join(lines) + "\n")
    return data


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, export, and say where the data went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--count", type=int, help="default: the whole split, or 1,000 of the training examples")
    parser.add_argument("--out", type=Path, required=True, help="folder; made where there is none")
    given = parser.parse_args(arguments)
    task = TASKS[given.task]
    count = given.count
    if count is None:
        count = 1_000 if given.split == "train" else task.size(given.split)
    try:
        print(export(task, given.split, count, given.out))
    except (ValueError, OpSkipError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
