"""What the plug-in costs requests without a picture: a server that skips against vLLM without it, alternated.

python -m benchmarks.vllm_text [--layers 8] [--tokens 128] [--rounds 9] [--json FILE]

Run it in the environment of ``make test-vllm`` (``PYTHONPATH=tests/vllm/site``). The model of `benchmarks.vllm_prefill`
is asked a question of text alone and answers with so many tokens, one request at a time: steps are as short as they
get, so what is done once a step weighs most. Two engines know nothing of the plug-in: the first of a process is slower
than those after it, so the second is what the others are compared with. Prints median ratios of seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import vllm
from rich.console import Console

from benchmarks.vllm_prefill import Timed, checkpoint
from opskip_compile.output.environment import environment
from opskip_compile.schedule.validation import write_json

PLAIN = "vLLM"
CONTENDERS = {"vLLM, made first": None, PLAIN: None, "schedule none": "none", "late:0.5": "late:0.5"}


def answer(engine: Timed, tokens: int) -> float:
    """Seconds of one request of text."""
    asked = vllm.SamplingParams(max_tokens=tokens, min_tokens=tokens, temperature=0, ignore_eos=True)
    start = time.perf_counter()
    engine.llm.generate([{"prompt": "how many circles are there? " * 8}], asked, use_tqdm=False)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        checkpoint(folder, given.layers, given.width, torch.float32)
        engines = {name: Timed(folder, "float32", schedule) for name, schedule in CONTENDERS.items()}
        for engine in engines.values():
            answer(engine, given.tokens)
        rounds = []
        for number in range(given.rounds):
            order = list(engines) if number % 2 else list(reversed(engines))
            rounds.append({name: answer(engines[name], given.tokens) for name in order})
        found = []
        for name in (name for name in engines if name != PLAIN):
            ratios = [one[name] / one[PLAIN] for one in rounds]
            ms = statistics.median(one[name] for one in rounds) * 1e3
            ratio, spread = round(statistics.median(ratios), 4), [round(min(ratios), 4), round(max(ratios), 4)]
            found.append({"contender": name, "ratio": ratio, "spread": spread, "ms": round(ms, 1)})
            Console().print(
                f"{name:16} {ratio:.3f} ({spread[0]:.3f} - {spread[1]:.3f}) of the time of vLLM, {ms:.0f} ms"
            )
    if given.json is not None:
        about = {"layers": given.layers, "width": given.width, "tokens": given.tokens}
        write_json({"environment": environment("cpu", "float32"), **about, "found": found}, given.json)


if __name__ == "__main__":
    main()
