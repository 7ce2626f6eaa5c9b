"""``opskip presets``: the published schedules and what they cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opskip_compile.cli.options import AsJson
from opskip_compile.output.console import print_json, print_table

if TYPE_CHECKING:
    from opskip_compile.schedule.presets import Preset

ROWS = (576, 1024, 2048)
TEXT = 64
WIDE = 96  # columns that the table needs with every column


def presets(as_json: AsJson = False) -> None:
    """Published schedules, their source, and the share of the prefill FLOPs that they cut."""
    from opskip_compile.schedule.presets import presets as published

    if as_json:
        print_json([_preset_dict(preset) for preset in published()])
        return
    from rich.console import Console
    from rich.table import Table

    wide = Console().width >= WIDE  # else the name has to tell the model
    title = f"FLOPs cut at {', '.join(map(str, ROWS))} visual tokens with {TEXT} of text"
    table = Table(title=title, title_justify="left")
    for name in ("name", "model", "source") if wide else ("name", "source"):
        table.add_column(name, no_wrap=True)
    for rows in ROWS:
        table.add_column(str(rows), justify="right", no_wrap=True)
    for preset in published():
        cuts = (f"{preset.cut(rows, TEXT):.1%}" for rows in ROWS)
        paper = ", ".join(preset.source.split(", ")[:2])
        name = preset.name + (" *" if preset.default else "")
        table.add_row(name, *([preset.model] if wide else []), paper, *cuts)
    table.caption = "* used for this model if no schedule is given"
    table.caption_justify = "left"
    print_table(table)


def _preset_dict(preset: Preset) -> dict[str, Any]:
    cuts = {str(rows): preset.cut(rows, TEXT) for rows in ROWS}
    return {
        "name": preset.name,
        "model": preset.model,
        "model_type": preset.model_type,
        "source": preset.source,
        "spec": preset.spec,
        "default": preset.default,
        "text_tokens": TEXT,
        "cut": cuts,
    }
