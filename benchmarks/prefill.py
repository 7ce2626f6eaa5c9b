"""Prefill time of a decoder: eager, plain Inductor and opskip, alternated in one process.

    python benchmarks/prefill.py [--layers 8 --width 1024 --visual 1024 --text 65] [--json FILE]

Random weights in the real Qwen3-VL decoder class. Every round runs each contender once, in turn; a speed-up is the
median over rounds of the ratio to plain Inductor in the same round. The ideal is the ratio of FLOPs
(DESIGN section 6), and the realised share is measured / ideal. Peak memory is what one forward holds beyond the
weights, its outputs and KV cache included.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peak import peak_bytes
from rich.console import Console
from rich.table import Table
from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

import opskip_compile as opskip

SCHEDULES = {
    "schedule none": "none",
    "last half silent": "late:0.5",
    "the same, rotary not shared": "late:0.5",
    "all attention skipped": "transform:{all}",
    "all FFN skipped": "attend:{all}",
    "all silent": "silent:{all}",
}


def build(args: argparse.Namespace) -> Qwen3VLTextModel:
    """The decoder with random weights."""
    torch.manual_seed(0)
    config = Qwen3VLTextConfig(
        vocab_size=256,
        hidden_size=args.width,
        intermediate_size=args.ffn_width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": mrope_section(args.head_dim),
        },
    )
    return Qwen3VLTextModel(config).eval().to(args.device, getattr(torch, args.dtype))


def mrope_section(head_dim: int) -> list[int]:
    """A split of the rotary frequencies over time, height and width, as Qwen3-VL's (24, 20, 20) of 64."""
    side = head_dim // 2 * 5 // 16
    return [head_dim // 2 - 2 * side, side, side]


def contenders(model: Qwen3VLTextModel, args: argparse.Namespace) -> dict[str, Callable[..., Any]]:
    """Name -> function of (embeddings, mask)."""

    def forward(embeddings: torch.Tensor, mask: torch.Tensor) -> Any:
        return model(inputs_embeds=opskip.mark_visual(embeddings, mask), use_cache=True)

    def eager(embeddings: torch.Tensor, mask: torch.Tensor) -> Any:
        return model(inputs_embeds=embeddings, use_cache=True)

    found: dict[str, Callable[..., Any]] = {"eager": eager, "Inductor": torch.compile(forward)}
    for name, spec in SCHEDULES.items():
        spec = spec.format(all=f"0-{args.layers - 1}")
        options = {"schedule": spec, "share_rotary": "not shared" not in name}
        found[name] = torch.compile(forward, backend="opskip", options=options)
    return found


def measure(functions: dict[str, Callable[..., Any]], inputs: tuple[Any, ...], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of each function; one call each before counts as warm-up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    device = inputs[0].device
    for i in range(rounds + 1):
        for name, function in functions.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            function(*inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i:
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in [
        ("layers", 8), ("width", 1024), ("ffn-width", 3072), ("heads", 16), ("kv-heads", 8), ("head-dim", 64),
        ("visual", 1024), ("text", 65), ("rounds", 9),
    ]:  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = build(args)
    rows = args.visual + args.text
    embeddings = torch.randn(1, rows, args.width, device=args.device, dtype=getattr(torch, args.dtype))
    mask = torch.zeros(1, rows, dtype=torch.bool, device=args.device)
    mask[:, 16 : 16 + args.visual] = True
    torch._dynamo.config.cache_size_limit = 64
    with torch.no_grad():
        functions = contenders(model, args)
        times = measure(functions, (embeddings, mask), args.rounds)
        peaks = {name: peak_bytes(partial(call, embeddings, mask), args.device) for name, call in functions.items()}
    results = summarize(times, peaks, model, args)
    show(results, args)
    if args.json:
        report = {
            "command": " ".join(["python", *sys.argv]),
            "device": torch.cuda.get_device_name()
            if args.device == "cuda"
            else f"CPU, {torch.get_num_threads()} threads",
            "machine": platform.machine(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "settings": {k: v for k, v in vars(args).items() if k != "json"},
            "results": results,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def summarize(
    times: dict[str, list[float]], peaks: dict[str, int], model: Any, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per contender: milliseconds, FLOPs cut, ideal and measured speed-up, peak memory against Inductor."""
    geometry = opskip.Geometry.from_config(model.config)
    rows = []
    for name, seconds in times.items():
        spec = SCHEDULES.get(name, "none").format(all=f"0-{args.layers - 1}")
        flops = opskip.count_flops(geometry, visual_tokens=args.visual, text_tokens=args.text, schedule=spec)
        ratios = [base / own for base, own in zip(times["Inductor"], seconds, strict=True)]
        measured = statistics.median(ratios)
        rows.append(
            {
                "name": name,
                "milliseconds": round(statistics.median(seconds) * 1e3, 2),
                "flops_cut": round(flops.cut, 4),
                "ideal": round(flops.ideal_speedup, 3),
                "measured": round(measured, 3),
                "spread": [round(min(ratios), 3), round(max(ratios), 3)],
                "realised": round(measured / flops.ideal_speedup, 3),
                "peak_mib": round(peaks[name] / 2**20, 1),
                "peak_to_inductor": round(peaks[name] / peaks["Inductor"], 3),
            }
        )
    return rows


def show(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """The table."""
    table = Table(
        title=f"{args.layers} layers of width {args.width}, {args.visual} visual + {args.text} text rows, {args.dtype}"
    )
    for column in ("contender", "ms", "FLOPs cut", "ideal", "measured", "spread", "realised", "peak MiB"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for row in rows:
        low, high = row["spread"]
        cells = [
            f"{row['milliseconds']:.1f}",
            f"{row['flops_cut']:.1%}",
            f"{row['ideal']:.2f}x",
            f"{row['measured']:.2f}x",
        ]
        ends = [f"{low:.2f}-{high:.2f}", f"{row['realised']:.0%}", f"{row['peak_mib']:.1f}"]
        table.add_row(row["name"], *cells, *ends)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
