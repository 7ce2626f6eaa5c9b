"""Entries of the functions and operators that the passes write into a graph themselves."""

from __future__ import annotations

from math import prod
from typing import Any

from opskip_compile.passes.levels import CHOOSE_LEVEL, KEPT_BY_LEVEL
from opskip_compile.passes.ops.families import plain
from opskip_compile.passes.ops.operation import Call, ShapeOf
from opskip_compile.passes.ops.table import declare
from opskip_compile.passes.runtime import (
    KEPT_ROWS,
    PACKED_ROWS,
    SHARED,
    VISUAL_ROWS,
    causal_mask,
    mark_deepstack,
    mark_visual,
    name_rows,
    scatter_packed,
    scatter_rows,
    select_packed,
    select_rows,
)
from opskip_compile.passes.scores import (
    CRITICAL_ROWS,
    KEPT_COUNT,
    KEPT_SHARE,
    ON_HOST,
    PROBE_ROWS,
    ROW_SCORES,
    SPREAD_SCORES,
)

declare(plain("opskip::kept_rows", "visual, through, room"), functions=[KEPT_ROWS])
declare(plain("opskip::select_rows", "input, rows, dim"), functions=[select_rows, select_packed])
declare(plain("opskip::scatter_rows", "input, rows, update"), functions=[scatter_rows, scatter_packed])
declare(plain("opskip::packed_rows", "rows, live, most"), functions=[PACKED_ROWS])
declare(plain("opskip::causal_mask", "rows, key"), functions=[causal_mask])
declare(plain("opskip::shared", "input"), functions=[SHARED])
declare(plain("opskip::probe_rows", "visual, mask, columns"), functions=[PROBE_ROWS])
declare(plain("opskip::spread_scores", "visual"), functions=[SPREAD_SCORES])
declare(plain("opskip::kept_count", "visual, through, keep"), functions=[KEPT_COUNT])
declare(plain("opskip::on_host", "most"), functions=[ON_HOST])
declare(plain("opskip::kept_share", "visual, through, keep"), functions=[KEPT_SHARE])
declare(plain("opskip::kept_by_level", "visual, through, shares, level"), functions=[KEPT_BY_LEVEL])
_CHOICE = "hidden, visual, mask, columns, weights, bias, gains, threshold, digest"
declare(plain("opskip::choose_level", _CHOICE), functions=[CHOOSE_LEVEL])
declare(plain("opskip::critical_rows", "visual, through, scores, count, most, room"), functions=[CRITICAL_ROWS])


def flops_of_scores(call: Call, shape_of: ShapeOf) -> int | None:
    """The products of the queries that are asked with every key."""
    query, key = shape_of(call["query"]), shape_of(call["key"])
    return None if not query or not key else 2 * prod(query) * key[-2 if len(key) == 4 else 0]


_SCORES = "query, key, mask, rows, live, before, columns, scale, causal"
declare(plain("opskip::row_scores", _SCORES, flops=flops_of_scores), functions=[ROW_SCORES])
# These two give their argument back.
_GIVEN_BACK: dict[str, Any] = {"renamed": {"hidden_states": "input"}, "aliases": ("input",)}
declare(plain("opskip::mark_visual", "input, visual_mask", **_GIVEN_BACK), functions=[mark_visual])
declare(plain("opskip::mark_deepstack", "input, visual_mask", **_GIVEN_BACK), functions=[mark_deepstack])
declare(plain("opskip::name_rows", "input, visual_mask, names, rooms", **_GIVEN_BACK), functions=[name_rows])
declare(plain("opskip::visual_rows", "input, visual_mask"), functions=[VISUAL_ROWS])
