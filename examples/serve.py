"""Start a vLLM server that skips, ask it about a picture, print its counters, and stop it.

python examples/serve.py [--model FOLDER_OR_NAME] [--schedule SPEC] [--picture FILE] [-- ARGUMENTS OF VLLM]

Needs vLLM 0.32 in the same environment. Without a model this is the one that comes with the package.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

import opskip_compile.models.packaged

DEMO = Path(opskip_compile.models.packaged.__file__).parent
PATIENCE = 600  # seconds until the server answers: loading and compiling


def drawn() -> bytes:
    """A red circle, as a PNG file."""
    picture, file = Image.new("RGB", (64, 64), "white"), io.BytesIO()
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill="red")
    picture.save(file, "png")
    return file.getvalue()


def ask(url: str, body: dict[str, Any] | None = None) -> str:
    """What the server answers."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
        return str(answer.read().decode())


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the server is ready; raise if it ends or takes too long."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with exit code {server.returncode}")
        try:
            ask(url)
        except OSError:
            time.sleep(1)
        else:
            return
    raise SystemExit(f"the server did not answer within {PATIENCE} s")


@contextmanager
def serving(model: str, schedule: str, arguments: Sequence[str] = ()) -> Iterator[str]:
    """A server until the block ends; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    skip = json.dumps({"opskip": {"schedule": schedule}})
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--additional-config", skip, *arguments]
    with tempfile.TemporaryDirectory() as counters:
        server = subprocess.Popen(command, env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": counters})
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/health", server)
            yield url
        finally:
            server.terminate()
            server.wait()


def question(url: str, model: str, picture: bytes, words: str, tokens: int) -> str:
    """What the model says about a picture, a PNG file."""
    data = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": words}]
    chat = {"model": model, "max_tokens": tokens, "temperature": 0, "messages": [{"role": "user", "content": content}]}
    return str(json.loads(ask(f"{url}/v1/chat/completions", chat))["choices"][0]["message"]["content"])


def counters(url: str) -> str:
    """The plug-in's lines of the server's metrics."""
    return "\n".join(line for line in ask(f"{url}/metrics").splitlines() if line.startswith("opskip:"))


def main() -> None:
    """Serve, ask, stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO / "checkpoint"))
    parser.add_argument("--schedule", default=str(DEMO / "schedule.json"), help="a preset, spec text or a file")
    parser.add_argument("--picture", type=Path, help="a PNG file")
    parser.add_argument("--question", default="what color is the circle?")
    parser.add_argument("--tokens", type=int, default=1, help="of the answer, at most")
    parser.add_argument("vllm", nargs="*", help="after --: more arguments for vLLM")
    given = parser.parse_args()
    with serving(given.model, given.schedule, given.vllm) as url:
        picture = given.picture.read_bytes() if given.picture else drawn()
        print("answer:", question(url, given.model, picture, given.question, given.tokens))
        print(counters(url))


if __name__ == "__main__":
    main()
