"""The methods that an evaluation compares, by name."""

from __future__ import annotations

DENSE = "dense"
# Level and search of `calibrate` that make each of them. ShortV (arXiv 2504.00502) ranks layers by the KL of the output
# when the visual rows of one layer are frozen, each layer by itself.
CALIBRATED = {"operators": ("operator", "joint"), "layers": ("layer", "joint"), "shortv": ("layer", "scores")}
UNCALIBRATED = ("fastv", "vtw", "random", "late")
METHODS = (*CALIBRATED, *UNCALIBRATED)
FASTV_LAYER = 2  # of the published setting: rows leave before layer 2 (arXiv 2403.06764)
