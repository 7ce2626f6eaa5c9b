"""Entries of the functions and operators that the passes write into a graph themselves."""

from __future__ import annotations

from opskip_compile.passes.ops.families import plain
from opskip_compile.passes.ops.table import declare
from opskip_compile.passes.runtime import (
    KEPT_ROWS,
    SHARED,
    VISUAL_ROWS,
    causal_mask,
    mark_visual,
    scatter_rows,
    select_rows,
)

declare(plain("opskip::kept_rows", "visual, through"), functions=[KEPT_ROWS])
declare(plain("opskip::select_rows", "input, rows, dim"), functions=[select_rows])
declare(plain("opskip::scatter_rows", "input, rows, update"), functions=[scatter_rows])
declare(plain("opskip::causal_mask", "rows, key"), functions=[causal_mask])
declare(plain("opskip::shared", "input"), functions=[SHARED])
# `mark_visual` gives its argument back.
declare(
    plain("opskip::mark_visual", "input, visual_mask", renamed={"hidden_states": "input"}, aliases=("input",)),
    functions=[mark_visual],
)
declare(plain("opskip::visual_rows", "input, visual_mask"), functions=[VISUAL_ROWS])
