"""A web server on this machine that serves pictures, and what goes wrong with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Pages:
    """What is served: path -> content; and which paths were asked for."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.content: dict[str, bytes] = {}
        self.asked: list[str] = []

    def url(self, path: str) -> str:
        return self.address + path


@contextmanager
def served() -> Iterator[Pages]:
    """``/cut`` announces more than it sends, ``/endless`` never ends, ``/trickle`` neither, ``/silent`` says nothing,
    and ``/to/PATH`` sends on to PATH."""
    end = threading.Event()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages.asked.append(self.path)
            if self.path == "/silent":
                end.wait(30)
            elif self.path == "/cut":
                self._send(b"half", 8)
            elif self.path in ("/endless", "/trickle"):
                self._send(b"", None)
                self._go_on(1 << 20 if self.path == "/endless" else 1)
            elif self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to"))
                self.end_headers()
            elif self.path in pages.content:
                self._send(pages.content[self.path], len(pages.content[self.path]))
            else:
                self.send_error(404)

        def _send(self, content: bytes, length: int | None) -> None:
            self.send_response(200)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def _go_on(self, size: int) -> None:
            try:
                while not end.is_set():
                    self.wfile.write(bytes(size))
                    time.sleep(0.01 if size == 1 else 0)
            except OSError:  # the other side has had enough
                pass

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        pages = Pages(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield pages
        finally:
            end.set()
            server.shutdown()
            thread.join()
