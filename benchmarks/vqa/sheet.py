"""A contact sheet: a few test examples of every task with their questions and answers.

python -m benchmarks.vqa.sheet --out sheet.png [--task NAME] [--split test] [--count 5] [--first 0]
"""

from __future__ import annotations

import argparse
import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.vqa.base import CANVAS, SPLITS, Example, Split
from benchmarks.vqa.draw import font
from benchmarks.vqa.tasks import TASKS
from opskip_compile.output.files import write_whole

CELL, TEXT, HEAD, GAP = 2 * CANVAS + 12, 40, 16, 6
STRIDE = 27  # easy-VQA asks up to 21 questions about an image, one after the other


def sheet(names: Iterable[str], split: Split, count: int, first: int = 0) -> Image.Image:
    """One row for each task: its name, then `count` examples; one image at twice its size, two at their own."""
    names = list(names)
    height = HEAD + 2 * CANVAS + TEXT
    page = Image.new("RGB", (CELL * count, height * len(names)), "white")
    pen = ImageDraw.Draw(page)
    for row, name in enumerate(names):
        top = row * height
        pen.text((GAP, top + 1), f"{name}: {TASKS[name].evidence}", font=font("DejaVuSans-Bold", 11), fill="black")
        for column in range(count):
            _cell(page, (column * CELL + GAP, top + HEAD), TASKS[name].example(split, first + STRIDE * column))
    return page


def _cell(page: Image.Image, corner: tuple[int, int], example: Example) -> None:
    left, top = corner
    pictures = [Image.fromarray(image) for image in example.images]
    if len(pictures) == 1:
        pictures = [pictures[0].resize((2 * CANVAS, 2 * CANVAS), Image.Resampling.NEAREST)]
    for number, picture in enumerate(pictures):
        page.paste(picture, (left + number * (CANVAS + 4), top))
    words = "\n".join([*textwrap.wrap(example.question, 36), f"> {example.answer}"])
    ImageDraw.Draw(page).multiline_text(
        (left, top + 2 * CANVAS + 2), words, font=font("DejaVuSans", 9), fill="black", spacing=1
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sheet as a PNG file of 256 colours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", choices=list(TASKS), action="append", help="default: all")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--count", type=int, default=5, help="examples of each task")
    parser.add_argument("--first", type=int, default=0, help="index of the first one")
    given = parser.parse_args(arguments)
    page = sheet(given.task or TASKS, given.split, given.count, given.first)
    file = io.BytesIO()
    page.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    write_whole(given.out, file.getvalue())


if __name__ == "__main__":
    main()
