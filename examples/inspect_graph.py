"""What the compiler would do to a model, without running it: report, code before and after, FLOPs.

python examples/inspect_graph.py [--model FOLDER] [--schedule SPEC] [--operator 0.ffn] [--html diff.html]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import opskip_compile as opskip


def main() -> None:
    """Print, and write a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a folder with a checkpoint of transformers, or demo")
    parser.add_argument("--schedule", default="late:0.33")
    parser.add_argument("--operator", default="7.ffn", help="a layer, and attention or ffn")
    parser.add_argument("--html", type=Path, default=Path("diff.html"))
    given = parser.parse_args()

    model, processor = opskip.load(given.model)
    content = [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "what is this?"}]
    how = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **how)
    report = opskip.explain(model, dict(inputs), schedule=given.schedule)
    print(report)
    diff = report.diff()
    print(diff.operator(given.operator))
    print(opskip.count_flops(report))
    diff.to_html(given.html)
    print(f"wrote {given.html}")


if __name__ == "__main__":
    main()
