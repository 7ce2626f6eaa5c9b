"""Options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
LIMIT = 64  # samples of the demo model, for a calibration
Model = Annotated[
    str,
    typer.Option(help="demo, or a transformers model with weights and processor: its folder, or its name on the hub."),
]
Data = Annotated[
    Path | None,
    typer.Option(help="JSONL: image (or images, audio), prompt and perhaps answer on each line. demo has its own."),
]
Modalities = Annotated[
    str, typer.Option(help="Whose rows are meant: some of image, video, audio, with commas between them, or all.")
]
Meant = Annotated[
    str | None,
    typer.Option(help="Whose rows the schedule means: image,video, audio, or all. A file says it itself."),
]
Batch = Annotated[int, typer.Option(help="Prompts to a forward pass.")]
Limit = Annotated[
    int | None, typer.Option(help=f"Samples at most, evenly spread over the file; demo: {LIMIT} if not given.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; cuda where there is one if not given.")]
DType = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the model's if not given.")]
Tokens = Annotated[int, typer.Option(help="Tokens of the model's own answer, at most; demo answers in one.")]
RowSet = Annotated[str, typer.Option(help="Rows that are left out: visual, or through_visual.")]
Plot = Annotated[Path | None, typer.Option(help="Draw it to this .png, .svg or .pdf.")]
Figures = Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")]
BenchDevice = Annotated[str, typer.Option(help="cpu, cuda, ...")]
BenchDType = Annotated[str, typer.Option(help="float32, bfloat16 or float16")]
AttentionMask = Annotated[bool, typer.Option(help="Give the decoder an attention mask of ones, as processors do.")]
