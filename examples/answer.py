"""Ask a model about a picture, dense and with operators skipped.

python examples/answer.py [--model FOLDER] [--schedule SPEC] [--picture FILE] [--question WORDS]

Without a model this is the one that comes with the package, which knows coloured shapes, and a picture that is drawn.
"""

from __future__ import annotations

import argparse

from PIL import Image, ImageDraw

import opskip_compile as opskip

DEMO = "silent:2,7 transform:1 attend:0,3-6"  # found by `opskip calibrate` for the demo model


def drawn() -> Image.Image:
    """A red circle."""
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill="red")
    return picture


def main() -> None:
    """Ask twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a folder with a checkpoint of transformers, or demo")
    parser.add_argument("--schedule", default=DEMO, help="a preset, spec text, or a file of `opskip calibrate`")
    parser.add_argument("--picture", help="an image file")
    parser.add_argument("--question", default="what color is the circle?")
    parser.add_argument("--tokens", type=int, default=1, help="of the answer, at most")
    parser.add_argument("--eager", action="store_true", help="run the rewritten graph without Inductor")
    given = parser.parse_args()

    model, processor = opskip.load(given.model)
    picture = Image.open(given.picture).convert("RGB") if given.picture else drawn()
    content = [{"type": "image", "image": picture}, {"type": "text", "text": given.question}]
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **how).to(model.device)

    def answer() -> str:
        tokens = model.generate(**inputs, max_new_tokens=given.tokens, do_sample=False)
        return str(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()

    print("dense:  ", answer())
    opskip.compile(model, schedule=given.schedule, options={"lower": "eager"} if given.eager else None)
    print("skipped:", answer())
    print(opskip.last_report())


if __name__ == "__main__":
    main()
