"""How often a decoder is compiled while prompts of twelve layouts come in: dense, and with opskip.

    python -m benchmarks.recompiles [--json FILE]

Each layout has its own length and number of visual rows; the batch is fixed within one line. "traffic" also changes the
batch, mixes in text-only prompts and generates two tokens for each prompt. A compile is one call of the backend with a
graph that holds the decoder's attention, counted alike for dense and opskip. After eight for one function Dynamo gives
up and runs it uncompiled (``torch._dynamo.config.recompile_limit``); here it fails instead, which shows as "over 8".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.backend import capture
from opskip_compile.backend.entry import REPORTS
from opskip_compile.backend.entry import opskip as backend
from opskip_compile.models.tiny import FAMILIES, Family, visual_mask
from opskip_compile.output.environment import environment
from opskip_compile.schedule.validation import write_json

LAYERS, SPEC = 2, "silent:1 transform:0"
# Text rows of one element, with an image of 16 rows between two.
ELEMENTS = (
    (3, 5), (6, 8), (2, 2, 9), (11, 4), (1, 4, 3, 2), (20, 1), (0, 7), (5, 5, 5, 5), (9, 30), (4, 4, 4, 4, 4), (33, 2),
    (7, 7, 7),
)  # fmt: skip


def layouts(batch: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Twelve layouts of ``batch`` elements."""
    for i in range(len(ELEMENTS)):
        yield tuple(ELEMENTS[(i + 5 * k) % len(ELEMENTS)] for k in range(batch))


class Counting:
    """A backend that counts the graphs with an attention, by whether they were rewritten."""

    def __init__(self, dense: bool) -> None:
        self.dense, self.compiles = dense, 0
        capture.install()  # as the backend's name does

    def __call__(self, gm: torch.fx.GraphModule, example_inputs: list[Any], **kwargs: Any) -> Callable[..., Any]:
        if any("scaled_dot_product_attention" in str(node.target) for node in gm.graph.nodes):
            self.compiles += 1
        if self.dense:
            return gm.forward
        return backend(gm, example_inputs, options={"schedule": SPEC, "lower": "eager"})


def decoder_only(family: Family, dense: bool, batch: int) -> int:
    """The decoder called with embeddings of which the sequence is marked dynamic."""
    model, counting = family.build(LAYERS), Counting(dense)
    decoder = model.get_decoder()

    def forward(hidden: Tensor, mask: Tensor, attention_mask: Tensor) -> Tensor:
        marked = opskip.mark_visual(hidden, mask)
        return decoder(inputs_embeds=marked, attention_mask=attention_mask, use_cache=True).last_hidden_state

    fast = torch.compile(forward, backend=counting)
    for seed, layout in enumerate(layouts(batch)):
        inputs = family.inputs(layout, seed)
        mask = visual_mask(inputs)
        given = (torch.randn(*mask.shape, 32), mask, inputs["attention_mask"])
        for tensor in given:
            torch._dynamo.mark_dynamic(tensor, 1)
        fast(*given)
    return counting.compiles


def whole_model(family: Family, dense: bool, batch: int, dynamic: bool | None = None) -> int:
    """`opskip_compile.compile` of a multimodal model; dense: the same module under plain ``torch.compile``."""
    model, count = compiled(family, dense, dynamic)
    for seed, layout in enumerate(layouts(batch)):
        model(**family.inputs(layout, seed))
    return count()


def traffic(family: Family, dense: bool, batch: int) -> int:
    """Everything at once: batches of 1 to ``batch``, text-only prompts, two generated tokens each."""
    model, count = compiled(family, dense, None)
    for i in range(len(ELEMENTS)):
        layout = list(layouts(1 + i % batch))[i]
        given = family.inputs(layout if i % 3 else tuple((sum(parts) + 3,) for parts in layout), i)
        model.generate(**given, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    return count()


def compiled(family: Family, dense: bool, dynamic: bool | None) -> tuple[nn.Module, Callable[[], int]]:
    """The model with its decoder compiled, and how often that happened since."""
    model: nn.Module = family.build(LAYERS)
    if dense:
        counting = Counting(dense=True)
        decoder = model.get_decoder()
        decoder.forward = torch.compile(decoder.forward, backend=counting, dynamic=dynamic)
        return model, lambda: counting.compiles
    before = REPORTS.count
    opskip.compile(model, SPEC, options={"lower": "eager"}, dynamic=dynamic)
    return model, lambda: REPORTS.count - before


MODES: dict[str, Callable[[Family, bool, int], int]] = {
    "automatic dynamic shapes": whole_model,
    "dynamic=True": lambda family, dense, batch: whole_model(family, dense, batch, dynamic=True),
    "mark_dynamic (decoder)": decoder_only,
    "traffic, batches 1 to 4": traffic,
}


def count(mode: str, family: str, batch: int, dense: bool) -> int | str:
    """Compiles of one line of the table."""
    torch._dynamo.reset()
    with torch.no_grad(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        try:
            return MODES[mode](FAMILIES[family], dense, batch)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            return "over 8"


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = Table(title="compiles of the decoder over 12 layouts, opskip (dense)")
    for column in ("", "batch", *FAMILIES):
        table.add_column(column, justify="left" if not column else "right")
    rows = []
    for mode in MODES:
        for batch in (4,) if mode.startswith("traffic") else (1, 2, 4):
            cells = {name: [count(mode, name, batch, dense) for dense in (False, True)] for name in FAMILIES}
            rows.append({"mode": mode, "batch": batch, **{k: {"opskip": a, "dense": b} for k, (a, b) in cells.items()}})
            table.add_row(mode, str(batch), *(f"{a} ({b})" for a, b in cells.values()))
    Console(width=110).print(table)
    if given.json:
        write_json({**environment("cpu", "float32"), "rows": rows}, given.json)


if __name__ == "__main__":
    main()
