"""``examples/serve.py`` starts a server that skips, and the request of the serving page is answered by one."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.asking import DEMO

ROOT = Path(__file__).parents[2]
SMALL = ("--max-model-len", "512", "--max-num-seqs", "4", "--dtype", "float32")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setitem(os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    import serve

    yield serve
    del sys.modules["serve"]


def request_of_the_page() -> str:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (found,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import openai" in code)
    return found


def test_serve(serve: Any, tmp_path: Path) -> None:
    """The answer is right, rows were left out for it, and the page's own lines get an answer."""
    model, picture = str(DEMO), tmp_path / "picture.png"
    with serve.serving(model, str(serve.DEMO / "schedule.json"), SMALL) as url:
        assert serve.question(url, model, serve.drawn(), "what color is the circle?", 1).strip() == "red"
        assert re.search(r'^opskip:steps_total\{.*kind="skipping".*\} [1-9]', serve.counters(url), re.MULTILINE)
        picture.write_bytes(serve.drawn())
        page = request_of_the_page()
        for shown, real in {"http://127.0.0.1:8000": url, "MODEL": model, "picture.png": str(picture)}.items():
            assert page.count(shown) == 1
            page = page.replace(shown, real)
        names: dict[str, Any] = {}
        exec(compile(page, "serving.md", "exec"), names)
        assert names["answer"].choices[0].message.content.strip()
