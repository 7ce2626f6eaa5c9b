"""Draw which rows a keep share goes on updating: pictures of five tasks with a question each, and the quarter kept.

python -m benchmarks.vqa.kept_rows [--model qwen3_vl] [--layer 5] [--out docs/_static/kept_rows.png]

A trained model of the suite and the oracle's own choice (`opskip_compile.models.critical`): the rows of the picture
with the highest attention of the question's rows, added up over the layers so far. What is left out is faded.
"""

from __future__ import annotations

import argparse
from math import isqrt
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.vqa.evaluate import MODELS, load_trained
from benchmarks.vqa.tasks import TASKS
from opskip_compile.models.critical import AttentionWatch
from opskip_compile.models.oracle import oracle
from opskip_compile.models.rows import token_mask, visual_tokens
from opskip_compile.schedule.left_out import LeftOut
from opskip_compile.schedule.schedule import Schedule

OUT = Path(__file__).resolve().parents[2] / "docs" / "_static" / "kept_rows.png"
ASKED = ("digits", "words", "charts", "counting", "forms")
KEPT = 0.25
FADED = 0.15  # how much is seen of a cell whose row is left out


class Recorder(AttentionWatch):
    """Notes the rows that each operator leaves out after all."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out: list[Tensor] = []

    def without_critical(self, left_out: Tensor, kind: str, rows: LeftOut) -> Tensor:
        self.left_out.append(super().without_critical(left_out, kind, rows))
        return self.left_out[-1]


def ask(model: Any, encoder: Any, image: Any, question: str, schedule: Schedule) -> tuple[str, np.ndarray]:
    """The answer, and a square of booleans: the cells whose rows are kept."""
    inputs = encoder.prompts([[image]], [question])
    visual = token_mask(inputs["input_ids"], visual_tokens(model))
    assert visual is not None
    watch = Recorder()
    with torch.no_grad(), oracle(model, schedule, visual, watch=watch):
        answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    left_out = watch.left_out[0]  # of the prefill
    kept = ~left_out[visual].reshape(isqrt(int(visual.sum())), -1).numpy()
    return encoder.text(answer.tolist()), kept


def main() -> None:
    """Ask, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(path.name for path in MODELS.iterdir() if path.is_dir())
    parser.add_argument("--model", choices=names, default="qwen3_vl")
    parser.add_argument("--layer", type=int, default=5, help="the layer whose FFN keeps a quarter")
    parser.add_argument("--example", type=int, default=5, help="of the test split of each task")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()

    from matplotlib.figure import Figure

    model, encoder = load_trained(given.model)
    schedule = Schedule.of(f"attend@keep={KEPT}:{given.layer}")
    drawing = Figure(figsize=(1.9 * len(ASKED), 4.3), dpi=150, layout="constrained")
    for (above, below), name in zip(drawing.subplots(2, len(ASKED)).T, ASKED, strict=True):
        example = TASKS[name].example("test", given.example)
        (pixels,) = example.images
        answer, kept = ask(model, encoder, Image.fromarray(pixels), example.question, schedule)
        cells = np.kron(kept, np.ones((len(pixels) // len(kept),) * 2))[..., None]
        above.imshow(pixels)
        above.set_title(fill(example.question, 24), fontsize=9)
        below.imshow((pixels * cells + (1 - cells) * (pixels * FADED + 255 * (0.9 - FADED))).astype(np.uint8))
        below.set_xlabel(f"answer: {answer}", fontsize=9)
        for place in (above, below):
            place.set_xticks([])
            place.set_yticks([])
    drawing.savefig(given.out)


if __name__ == "__main__":
    main()
