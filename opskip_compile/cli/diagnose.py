"""``opskip diagnose``: how large the visual updates of each layer are, and what the answer notices of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from opskip_compile.cli.options import (
    AsJson,
    Batch,
    Data,
    Device,
    DType,
    Limit,
    Modalities,
    Model,
    Plot,
    RowSet,
    Tokens,
)
from opskip_compile.cli.processes import processes
from opskip_compile.cli.samples import model_and_samples
from opskip_compile.output.console import check_targets, note, print_json, print_table


def diagnose(
    model: Model,
    data: Data = None,
    rows: RowSet = "visual",
    modalities: Modalities = "image,video",
    batch: Batch = 1,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Of the demo's choice of questions.")] = 0,
    answer_tokens: Tokens = 16,
    device: Device = None,
    dtype: DType = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Show, layer by layer, how large the visual updates are and what the answer notices of them."""
    from rich.console import Console

    from opskip_compile import calibration
    from opskip_compile.output.plots import check_plot
    from opskip_compile.output.progress import progress

    with processes() as first:
        checked: Any = {"rows": rows, "modalities": modalities}
        config = calibration.CalibrationConfig(**checked, batch=batch, answer_tokens=answer_tokens)
        if plot is not None:
            check_plot(plot)
        if first:
            check_targets(plot=plot)
        with progress(Console(stderr=True, quiet=not first)) as step:
            whole, samples = model_and_samples(model, data, config, limit, seed, device, dtype, step)
            diagnosis = calibration.diagnose(
                whole, samples, rows=config.rows, modalities=tuple(config.modalities), step=step
            )
        if not first:
            return
        if plot is not None:
            diagnosis.plot(plot)
        if as_json:
            print_json(diagnosis.to_dict())
        else:
            print_table(diagnosis.table(), least=90)
        if plot is not None:
            note(f"wrote {plot}")
