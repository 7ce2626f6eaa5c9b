"""The methods that an evaluation compares, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from opskip_compile.calibration.config import CalibrationOptions

DENSE = "dense"
LEVELS = 8  # of the method that chooses one for every prompt
# Options of `calibrate` that make each of them. ShortV (arXiv 2504.00502) ranks layers by the KL of
# the output when the visual rows of one layer are frozen, each layer by itself. DOP (arXiv 2507.02909) adds up the KL
# of modules skipped alone, and skips each kind of module from some depth on.
CALIBRATED: Mapping[str, CalibrationOptions] = {
    "per-prompt": {"levels": LEVELS},
    "operators+keep": {},
    "operators": {"shares": ()},
    "dop": {"shares": (), "search": "depth"},
    "layers": {"shares": (), "level": "layer"},
    "shortv": {"shares": (), "level": "layer", "search": "scores"},
}
UNCALIBRATED = ("fastv", "vtw", "random-tokens", "divprune", "random", "late")
# Tokens pruned before the decoder as `divprune` does, and on those that stay operators of a calibrated method.
COMBINED: Mapping[str, str] = {"pruned+operators": "operators", "pruned+operators+keep": "operators+keep"}
PARTS = (1 / 3, 1 / 2, 2 / 3)  # of the cut that the operators are asked for; tokens make up for what is missing
METHODS = (*CALIBRATED, *UNCALIBRATED, *COMBINED)
FASTV_LAYER = 2  # of the published setting: rows leave before layer 2 (arXiv 2403.06764)
# Where rows leave and which of them stay. VTW's layer depends on the cut.
DROPPING: Mapping[str, tuple[int, Literal["attention", "random", "diverse"]]] = {
    "fastv": (FASTV_LAYER, "attention"),
    "vtw": (0, "attention"),
    "random-tokens": (0, "random"),
    "divprune": (0, "diverse"),
}
