"""What calibrating a large model would cost, from counts: dense prefills that the search runs, their FLOPs and bytes.

    python -m benchmarks.calibration_cost [--layers 94] [--json FILE]

The number of dense prefills a sample is counted: a calibration of a small model with random weights that is as deep.
The rest is arithmetic for Qwen3-VL-235B-A22B, whose sizes stand in its config (94 layers, width 4,096, 64 heads of 128,
4 key heads, 8 of 128 experts of width 1,536 for each row):

    seconds = samples * prefills * FLOPs(prefill) / (GPUs * peak * utilisation)
    bytes that a GPU sends in a prefill, tensor parallel = layers * 2 * rows * width * 2 * 2 (GPUs - 1) / GPUs

(two all-reduces a layer of rows in 16 bits, in a ring). Peak is that of NVIDIA's data sheet of the H100 SXM for
bfloat16 without sparsity. Nothing of it was run on a GPU: utilisation is an assumption, and stands in the output.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich import print

import opskip_compile as opskip
from opskip_compile.models.tiny import FAMILIES
from opskip_compile.output.environment import environment
from opskip_compile.schedule.validation import write_json

SIZES = opskip.Geometry(94, 4096, 8 * 1536, 64, 4, 128)  # of the experts, those that a row goes through
WEIGHTS = 235e9
VISUAL, TEXT = 1024, 64
GPUS, PEAK, LINK, MEMORY = 8, 989e12, 450e9, 80e9  # H100 SXM: FLOPs a second, bytes a second each way, bytes


def counted(layers: int, evidence: bool) -> float:
    """Dense prefills a sample that a calibration runs, parts of prefills counted as parts."""
    family = FAMILIES["qwen3_vl"]
    torch.manual_seed(0)
    model = family.build(layers).eval()
    result = opskip.calibrate(
        model,
        [family.inputs() for _ in range(4)],  # of which one is held out: a quarter, as of any number
        answer_tokens=1,
        controls=evidence,
        stability=False,
        whole_front=evidence,
    )
    return float(result.spent.dense_prefills)


def estimate(prefills: float, samples: int, utilisation: float) -> dict[str, Any]:
    """The arithmetic of the module's docstring."""
    rows = VISUAL + TEXT
    flops = opskip.count_flops(SIZES, visual_tokens=VISUAL, text_tokens=TEXT).dense
    seconds = samples * prefills * flops / (GPUS * PEAK * utilisation)
    sent = SIZES.num_layers * 2 * rows * SIZES.hidden_size * 2 * 2 * (GPUS - 1) / GPUS
    return {
        "prefills_a_sample": round(prefills, 1),
        "samples": samples,
        "tflops_a_prefill": round(flops / 1e12, 1),
        "utilisation_assumed": utilisation,
        "minutes": round(seconds / 60, 1),
        "gpu_hours": round(seconds * GPUS / 3600, 2),
        "gbytes_sent_a_prefill": round(sent / 1e9, 2),
        "minutes_of_sending_at_full_rate": round(samples * prefills * sent / LINK / 60, 1),
        "weights_gbytes_a_gpu": round(WEIGHTS * 2 / GPUS / 1e9, 1),
        "fits": WEIGHTS * 2 / GPUS < MEMORY,
        "kept_hidden_states_gbytes_a_sample": round(SIZES.num_layers * rows * SIZES.hidden_size * 2 / 1e9, 2),
    }


def main() -> None:
    """Count, compute, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=SIZES.num_layers, help="of the small model that is counted")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that a prefill reaches")
    parser.add_argument("--evidence", action="store_true", help="also whole layers, random sets and the whole front")
    parser.add_argument("--json", type=Path, help="write the figures")
    given = parser.parse_args()
    found = estimate(counted(given.layers, given.evidence), given.samples, given.utilisation)
    print({"layers": given.layers, **found})
    if given.json:
        write_json({"environment": environment("cpu", "float32"), "layers": given.layers, **found}, given.json)


if __name__ == "__main__":
    main()
