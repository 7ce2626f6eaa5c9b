"""Prefill in vLLM: the decoder that skips against vLLM's own compiled one, alternated in one process.

python -m benchmarks.vllm_prefill [--dtype float32] [--layers 8] [--width 1024] [--schedule ...] [--json FILE]

Run it in the environment of ``make test-vllm`` (``PYTHONPATH=tests/vllm/site``). A Qwen3-VL with random weights and one
layer of vision is asked about a picture of 1,024 visual rows; what is timed is the model's forward of that step, after
the vision tower. Prints the median ratio of each schedule beside two bounds. The ideal is the ratio of FLOPs, of
attention those of the keys that a row may see: vLLM's kernels compute no others, while `count_flops` counts all. From
profiles of further calls: how much faster vLLM's own kernels (products, attention, writing to the cache) are for fewer
rows, whatever is around them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import numpy as np
import torch
import vllm
from PIL import Image
from rich.console import Console
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from opskip_compile.output.environment import environment
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.schedule import Schedule
from opskip_compile.schedule.validation import write_json
from opskip_compile.timing.decoders import thinned

PACKAGED = Path(__file__).parents[1] / "opskip_compile/models/packaged/checkpoint"
SCHEDULES = ("late:0.5", "transform:all", "attend:all", "silent:all")
SIDE, PIXELS = 32, 8  # of a picture in visual rows, and of a visual row
QUESTION = "<|vision_start|><|image_pad|><|vision_end|>" + "how many circles are there? " * 8


def checkpoint(folder: Path, layers: int, width: int, dtype: torch.dtype) -> Geometry:
    """Write a Qwen3-VL of this size with the packaged processor; returns the sizes of its decoder."""
    config = json.loads((PACKAGED / "config.json").read_text())
    heads, size = width // 64, 64
    text = config["text_config"]
    text |= {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers, "head_dim": size}
    text |= {"num_attention_heads": heads, "num_key_value_heads": heads // 2, "max_position_embeddings": 4096}
    text["rope_parameters"]["mrope_section"] = [12, 10, 10]
    config["vision_config"]["out_hidden_size"] = width
    shutil.copytree(PACKAGED, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    pixels = (SIDE * PIXELS) ** 2
    settings["size"] = {"shortest_edge": pixels, "longest_edge": pixels}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)).to(dtype).save_pretrained(folder)
    return Geometry(
        hidden_size=width,
        intermediate_size=3 * width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads // 2,
        head_dim=size,
    )


def flops(geometry: Geometry, schedule: str, before: int, rows: int) -> int:
    """Of a prompt of ``rows`` rows, ``before`` of them text in front of the picture; `Geometry` has the formulas."""
    after = range(before + SIDE**2, rows)
    kept = {"visual": [*range(before), *after], "through_visual": [*after]}
    found = 0
    for state in Schedule.of(schedule).resolve(geometry.num_layers):
        asked = kept[state.attention.rows] if state.attention else range(rows)
        found += geometry.attention(0, rows) + geometry.queries(len(asked), sum(row + 1 for row in asked))
        found += geometry.ffn(len(kept[state.ffn.rows]) if state.ffn else rows)
    return found


class Timed:
    """An engine, and the seconds of its model's last forward of many rows."""

    def __init__(self, folder: Path, dtype: str, schedule: str | None) -> None:
        asked = {} if schedule is None else {"opskip": {"schedule": schedule}}
        settings = {"max_model_len": 2048, "max_num_batched_tokens": 2048, "max_num_seqs": 1}
        self.profiles = False
        self.llm = vllm.LLM(
            str(folder),
            dtype=dtype,
            additional_config=asked,
            skip_mm_profiling=True,
            enable_prefix_caching=False,
            limit_mm_per_prompt={"image": 1, "video": 0},
            **settings,
        )
        self.seconds, self.rows, self.kernels = 0.0, 0, 0.0
        model = self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model
        forward = model.forward

        def timed(*args: Any, **named: Any) -> Any:
            if self.profiles and len(named["inputs_embeds"]) > SIDE:
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                    result = forward(*args, **named)
                own = (event for event in profile.key_averages() if event.key.startswith("_C::"))
                self.kernels = sum(event.self_cpu_time_total for event in own)
                return result
            start = time.perf_counter()
            result = forward(*args, **named)
            if len(named["inputs_embeds"]) > SIDE:
                self.seconds, self.rows = time.perf_counter() - start, len(named["inputs_embeds"])
            return result

        model.forward = timed

    def prefill(self, seed: int) -> float:
        """Seconds of one prompt."""
        side = SIDE * PIXELS
        pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
        request = {"prompt": QUESTION, "multi_modal_data": {"image": Image.fromarray(pixels)}}
        self.llm.generate([request], vllm.SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)
        return self.seconds


def kernels(dense: Timed, skipping: Timed, rounds: int) -> float:
    """How much faster vLLM's own kernels are, alternated."""
    found = []
    for seed in range(rounds):
        for each in (dense, skipping):
            each.profiles = True
            each.prefill(100 + seed)
            each.profiles = False
        found.append(dense.kernels / skipping.kernels)
    return statistics.median(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--schedule", action="append", help="a preset is thinned to so many layers")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    console, found = Console(), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        geometry = checkpoint(folder, given.layers, given.width, getattr(torch, given.dtype))
        dense = Timed(folder, given.dtype, None)
        for schedule in given.schedule or SCHEDULES:
            spec = thinned(Schedule.of(schedule), given.layers).to_spec()
            skipping = Timed(folder, given.dtype, spec)
            for each in (dense, skipping):
                each.prefill(0)
            pairs = [(dense.prefill(seed), skipping.prefill(seed)) for seed in range(1, given.rounds + 1)]
            ratios = [a / b for a, b in pairs]
            ratio = statistics.median(ratios)
            rows = {"visual_tokens": SIDE**2, "text_tokens": dense.rows - SIDE**2}
            ideal = flops(geometry, "none", 1, dense.rows) / flops(geometry, spec, 1, dense.rows)
            times = [statistics.median(times) * 1e3 for times in zip(*pairs, strict=True)]
            measured = {"speedup": round(ratio, 4), "spread": [round(min(ratios), 4), round(max(ratios), 4)]}
            ms = {"ms": [round(each, 2) for each in times]}
            alone = kernels(dense, skipping, given.rounds)
            bounds = {"ideal": round(ideal, 4), "kernels": round(alone, 4)}
            found.append({"schedule": schedule, "spec": spec, **rows, **measured, **bounds, **ms})
            console.print(
                f"{schedule:16} {times[0]:8.1f} -> {times[1]:8.1f} ms  {ratio:.2f}x, "
                f"ideal {ideal:.2f}x ({ratio / ideal:.0%}), kernels alone {alone:.2f}x ({ratio / alone:.0%})"
            )
            del skipping
    if given.json is not None:
        write_json({"environment": environment("cpu", given.dtype), "layers": given.layers, "found": found}, given.json)


if __name__ == "__main__":
    main()
