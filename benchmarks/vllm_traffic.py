"""Random traffic on an engine of vLLM that skips, every answer checked against the oracle on transformers.

python -m benchmarks.vllm_traffic [--minutes 30] [--seed 0] [--schedule ...] [--no-prefix-caching] [--json FILE]

Run it in the environment of ``make test-vllm`` (``PYTHONPATH=tests/vllm/site``). Requests come at random while others
are answered: text alone, one picture or two of random sizes, text before and between them, questions about a picture
that another request has shown already, short and long answers; some are given up. Steps have few rows, so that they cut
pictures apart, and the cache has few blocks, so that requests lose theirs. Checked are the log-probabilities of the
whole vocabulary at every row of an answer (of one in four at every row of the prompt too) and its tokens; at the end
blocks, memory and processes. The exit code is 1 if anything was wrong. Where two critical rows have the same score up
to rounding, an answer may also be the one that the oracle gives with the other of them; those are counted.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import psutil
import torch
from rich.console import Console

from opskip_compile.backend.reports import REPORTS
from opskip_compile.output.environment import environment
from opskip_compile.schedule.validation import write_json
from tests.vllm.asking import BOUND, DEMO, IMAGE, Asked, Reference, counters, demo, engine, picture, said, sampling

WORDS = "is there a red circle or how many blue ones are shown what colour which shape and why not".split()
SIDES = (64, 96, 128)  # of a picture
TIE = 1e-5  # of the highest score: closer rows may be chosen the other way by another order of additions
RUNNING = 12  # requests at a time, at most
SCHEDULE = "attend:0,2 transform:1,4 silent:5-7"
THROUGH = "silent@through_visual:5-7 transform@through_visual:1 attend:0,2 transform:4"


class Traffic:
    """What is asked, and what came of it.

    Args:
        llm: the engine.
        reference: the same model in transformers.
        schedule: by which it skips.
        seed: of all choices.
    """

    def __init__(self, llm: Any, reference: Reference, schedule: str, seed: int) -> None:
        self.core, self.reference, self.schedule = llm.llm_engine, reference, schedule
        self.rng, self.running, self.counts = random.Random(seed), dict[str, tuple[str, Asked]](), Counter[str]()
        self.wrong, self.ties = list[str](), list[str]()
        self.largest = 0.0
        self._shown: list[Any] = []

    def text(self) -> str:
        """Some words."""
        return " ".join(self.rng.choice(WORDS) for _ in range(self.rng.randrange(1, 14)))

    def image(self) -> Any:
        """A new picture, or one that was shown before."""
        if self._shown and self.rng.random() < 0.3:
            return self.rng.choice(self._shown)
        shown = picture(self.rng.choice(SIDES), self.rng.choice(SIDES), self.rng.randrange(10**6))
        self._shown = [*self._shown[-20:], shown]
        return shown

    def request(self) -> Asked:
        """A prompt with up to two pictures."""
        images = [self.image() for _ in range(self.rng.choice((0, 1, 1, 2)))]
        before = self.text() + " " if self.rng.random() < 0.5 else ""
        return Asked(
            before + " ".join(f"{IMAGE}{self.text()}" for _ in images) + (self.text() if not images else ""), images
        )

    def send(self, number: int) -> None:
        """One more request."""
        asked = self.request()
        tokens = self.rng.choice((1, 2, 8, 40))
        params = sampling(tokens, every_row=self.rng.random() < 0.25)
        name = f"request {number}"
        inner = self.core.add_request(name, asked.request, params) or name
        self.running[name] = (inner, asked)
        self.counts[f"sent, {len(asked.images)} pictures"] += 1

    def step(self) -> None:
        """One step of the engine."""
        for output in self.core.step():
            if output.finished:
                name = next(
                    (name for name, (inner, _) in self.running.items() if output.request_id in (name, inner)), None
                )
                if name is not None:
                    self.check(output, self.running.pop(name)[1])

    def give_up(self) -> None:
        """One of the requests that run."""
        name = self.rng.choice(list(self.running))
        self.core.abort_request([self.running.pop(name)[0]])
        self.counts["given up"] += 1

    def check(self, output: Any, asked: Asked) -> None:
        """Compare an answer with the oracle's."""
        got, answer = said(output), list(output.outputs[0].token_ids)
        error, behind = self.distance(output, asked, got)
        margins = self.reference.margins
        if not error <= BOUND and min(margins, default=1.0) < TIE:
            nearest = min(range(len(margins)), key=margins.__getitem__)
            before, (error, behind) = error, self.distance(output, asked, got, nearest)
            if error <= BOUND:
                self.ties.append(f"{asked.text!r}: {before:.1e}, {error:.1e} with a row {margins[nearest]:.1e} behind")
        self.largest = max(self.largest, error)
        self.counts["checked"] += 1
        self.counts["rows checked"] += len(got)
        self.counts["with rows from the cache"] += bool(output.num_cached_tokens)
        if not (error <= BOUND and behind <= 2 * BOUND):  # so written, NaN is wrong
            self.wrong.append(f"{asked.text!r}: {error:.1e}, tokens {behind:.1e} behind")
        if asked.images and self.counts["checked"] % 4 == 0:
            dense = self.reference.of(asked.images, output.prompt_token_ids, answer, None)[-len(answer) :]
            self.counts["compared with the dense model"] += 1
            self.counts["other tokens than the dense model"] += dense.argmax(-1).tolist() != answer

    def distance(self, output: Any, asked: Asked, got: torch.Tensor, other: int | None = None) -> tuple[float, float]:
        """How far an answer is from the oracle's, and its tokens from the likeliest, in parts of the largest number."""
        answer = list(output.outputs[0].token_ids)
        wanted = self.reference.of(asked.images, output.prompt_token_ids, answer, self.schedule, other)[-len(got) :]
        last, tokens = wanted[-len(answer) :], torch.tensor(answer)[:, None]
        behind = (last.max(-1).values - last.gather(1, tokens)[:, 0]).max()
        error = (got - wanted[:, : got.shape[1]]).abs().max()
        return float(error / wanted.abs().max()), float(behind / wanted.abs().max())


def main() -> None:
    """Ask, check and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedule", help="'none' is vLLM alone")
    parser.add_argument("--no-prefix-caching", action="store_true")
    parser.add_argument("--rows", type=int, default=96, help="of a step, at most")
    parser.add_argument("--blocks", type=int, default=24, help="of 32 rows, in the cache")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    schedule = given.schedule or (THROUGH if given.no_prefix_caching else SCHEDULE)
    console, reference = Console(), demo()
    settings = {"max_num_batched_tokens": given.rows, "num_gpu_blocks_override": given.blocks, "block_size": 32}
    settings |= {"enable_prefix_caching": not given.no_prefix_caching, "max_model_len": 448, "mm_processor_cache_gb": 0}
    memory: list[int] = []
    with engine(DEMO, schedule, lower="inductor", **settings) as llm:
        traffic = Traffic(llm, reference, schedule, given.seed)
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        pool, preempt = scheduler.kv_cache_manager.block_pool, scheduler._preempt_request

        def counting(*args: Any, **named: Any) -> Any:
            traffic.counts["lost their blocks"] += 1
            return preempt(*args, **named)

        scheduler._preempt_request = counting
        free, start, number, graphs = pool.get_num_free_blocks(), time.monotonic(), 0, REPORTS.count
        while (spent := time.monotonic() - start) < 60 * given.minutes or traffic.running:
            if spent < 60 * given.minutes and len(traffic.running) < RUNNING and traffic.rng.random() < 0.4:
                traffic.send(number)
                number += 1
            if traffic.running and traffic.rng.random() < 0.003:
                traffic.give_up()
            traffic.step()
            if spent // 60 >= len(memory):
                memory.append(psutil.Process().memory_info().rss >> 20)
                console.print(f"{spent:.0f} s: {dict(traffic.counts)}, {len(traffic.wrong)} wrong, {memory[-1]} MiB")
        traffic.step()
        found: dict[str, Any] = {
            "schedule": schedule,
            **{name: value for name, value in vars(given).items() if name not in ("json", "schedule")},
            "counts": dict(traffic.counts),
            "wrong": traffic.wrong,
            "ties": traffic.ties,
            "largest_error": traffic.largest,
            "bound": BOUND,
            "blocks_free": [free, pool.get_num_free_blocks()],
            "graphs": REPORTS.count - graphs,
            "steps": {} if schedule == "none" else {"skipping": counters(llm).skipping, "dense": counters(llm).dense},
            "mib_by_minute": memory,
            "mib_at_most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        }
    found["processes_left"] = [child.name() for child in psutil.Process().children(recursive=True)]
    for name, value in found.items():
        console.print(f"{name}: {value}")
    if given.json is not None:
        write_json({"environment": environment("cpu", "float32"), **found}, given.json)
    sys.exit(bool(traffic.wrong) or len({*found["blocks_free"]}) != 1)


if __name__ == "__main__":
    main()
