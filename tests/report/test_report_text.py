"""What ``print(report)`` says of layers that keep a share of their rows, or leave more than visual rows out."""

from __future__ import annotations

import opskip_compile as opskip
from opskip_compile.models.tiny import FAMILIES


def test_row_sets_are_named_where_they_are_not_just_the_visual_rows(fresh: None) -> None:
    family = FAMILIES["llava"]
    schedule = "attend@keep=0.25:0 silent@through_visual,keep=0.5:1 silent:2 transform@through_visual:3"
    lines = str(opskip.explain(family.build(4), family.inputs(), schedule=schedule)).splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines if line.startswith("  layer")] == [
        "attend  (ffn visual,keep=0.25)",
        "silent  (through_visual,keep=0.5)",
        "silent",
        "transform  (attention through_visual)",
    ]
