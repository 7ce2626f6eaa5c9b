"""Find a schedule for a model on a folder of pictures, and write what it is and how good it is.

python examples/calibrate.py FOLDER [--model FOLDER] [--budget 0.337] [--question WORDS] [--out schedule.json]

Every picture of the folder is asked the same question; no answers are needed. With prompts of your own, write a line
for each into a .jsonl file instead, and call `opskip calibrate` with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import opskip_compile as opskip

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


def main() -> None:
    """Calibrate, print the evidence, write the schedule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="pictures, some dozens of them")
    parser.add_argument("--model", default="demo", help="a folder with a checkpoint of transformers, or demo")
    parser.add_argument("--budget", default="0.337", help="share of the prefill FLOPs to save, or kl<0.01")
    parser.add_argument("--question", default="what shape is in the image?")
    parser.add_argument(
        "--evidence", action="store_true", help="also what whole layers or chance give: four times as long"
    )
    parser.add_argument("--out", type=Path, default=Path("schedule.json"))
    given = parser.parse_args()

    files = sorted(file for file in given.folder.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        parser.error(f"there is no picture in {given.folder}")
    model, processor = opskip.load(given.model)

    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}

    def inputs(file: Path) -> dict[str, object]:
        picture = Image.open(file).convert("RGB")
        content = [{"type": "image", "image": picture}, {"type": "text", "text": given.question}]
        return dict(processor.apply_chat_template([{"role": "user", "content": content}], **how).to(model.device))

    result = opskip.calibrate(
        model,
        [inputs(file) for file in files],
        given.budget,
        answer_tokens=8,
        controls=given.evidence,
        stability=given.evidence,
        whole_front=given.evidence,
    )
    result.schedule.save(given.out)
    print(result)
    print(f"wrote {given.out}: opskip.compile(model, schedule={str(given.out)!r})")


if __name__ == "__main__":
    main()
