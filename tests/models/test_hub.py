"""Names on a model hub: a clear answer within seconds where it can't be reached, and one download where it can."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from opskip_compile.errors import OpSkipError
from opskip_compile.models import hub
from opskip_compile.models.hub import hub_folder
from tests.helpers.commands import call, one_line

SHA = "0123456789abcdef0123456789abcdef01234567"
NAME = "some-one/a-model"


@contextmanager
def small_hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """A hub with one model, as far as its client asks; its address and the files that were fetched."""
    fetched: list[str] = []
    about = {"id": NAME, "sha": SHA, "siblings": [{"rfilename": name} for name in files]}
    tree = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files.items()]

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_content=False)

        def do_GET(self) -> None:
            self._answer(with_content=True)

        def _answer(self, with_content: bool) -> None:
            path = self.path.partition("?")[0]
            name = path.partition(f"/resolve/{SHA}/")[2]
            if name in files:
                content = files[name]
                fetched.extend([name] * with_content)
            elif path.startswith(f"/api/models/{NAME}/tree/"):
                content = json.dumps(tree).encode()
            elif path.startswith(f"/api/models/{NAME}"):
                content = json.dumps(about).encode()
            else:
                self.send_response(401)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", SHA)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.end_headers()
            if with_content:
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
        server.shutdown()
        thread.join()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that accepts and never answers."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


@pytest.mark.usefixtures("silent")
def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    started, before = time.monotonic(), dict(os.environ)
    with pytest.raises(
        OpSkipError, match=rf"^model: '{NAME}' is no folder and not in the hub's cache, and the hub can't"
    ):
        hub_folder(NAME)
    assert time.monotonic() - started < 5
    assert dict(os.environ) == before


def test_a_hub_that_can_not_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command, which asks for nothing else before."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": "a.png", "prompt": "what", "answer": "a"}))
    started = time.monotonic()
    found = one_line(call("eval", "--model", NAME, "--data", tmp_path / "data.jsonl"))
    assert found.startswith(f"model: {NAME!r} is no folder and not in the hub's cache, and the hub can't be reached: ")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", ["./gone", "/no/such/folder", "a/b/c", "a b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(OpSkipError, match=rf"^pretrained: '{name}' is no folder, and no name of a model on the hub"):
        hub_folder(name, "pretrained")


SCRIPT = """
import sys
from opskip_compile.errors import OpSkipError
from opskip_compile.models.hub import hub_folder
for name in sys.argv[1:]:
    try:
        print(hub_folder(name))
    except OpSkipError as error:
        print(error)
"""


def test_one_download(tmp_path: Path) -> None:
    """What transformers does not read is not fetched, and afterwards no hub is needed."""
    files = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"weights", "a.gguf": b"more"}
    how = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "127.0.0.1"}

    def run(address: str, *names: str) -> list[str]:
        env = {**os.environ, **how, "HF_ENDPOINT": address}
        command = [sys.executable, "-c", SCRIPT, *names]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.splitlines()

    with small_hub(files) as (address, fetched):
        folder, unknown = run(address, NAME, "nobody/nothing")
        assert sorted(fetched) == sorted(path.name for path in Path(folder).iterdir())
        assert sorted(fetched) == ["config.json", "model.safetensors"]
        assert unknown == "model: 'nobody/nothing' is no folder, and no model on the hub that you may read"
    assert run(address, NAME) == [folder]
