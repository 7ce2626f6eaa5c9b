"""Workers in processes of their own, as a server has them: the plug-in is found there by its entry point."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import pytest

from benchmarks.serving import TEMPLATE, TOKENS, Server, picture
from tests.vllm.asking import DEMO, check, demo, engine, sampling
from tests.vllm.test_server import PROMPTS, SCHEDULE


def test_two_ranks_of_a_tensor_parallel_group(capfd: pytest.CaptureFixture[str]) -> None:
    with engine(DEMO, SCHEDULE, tensor_parallel_size=2, max_num_batched_tokens=40) as llm:
        outputs = llm.generate([one.request for one in PROMPTS], sampling(), use_tqdm=False)
        assert check(outputs, PROMPTS, demo(), SCHEDULE) > 0
    said = "".join(capfd.readouterr())
    assert "(Worker" in said  # what workers say comes here
    assert "in full" not in said and "for every row" not in said


def test_a_server_counts_what_it_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, counted = tmp_path / "model", tmp_path / "counted"
    shutil.copytree(DEMO, folder)
    counted.mkdir()
    (folder / "chat.jinja").write_text(TEMPLATE)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(counted))
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    server = Server.start("skipping", 8423, folder, SCHEDULE, longest=512)
    try:
        server.wait()
        image = {"type": "image_url", "image_url": {"url": picture(8, 0)}}
        messages = [{"role": "user", "content": [image, {"type": "text", "text": "what is it?"}]}]
        asked = json.dumps({"model": "model", "messages": messages, "max_tokens": TOKENS, "ignore_eos": True}).encode()
        call = urllib.request.Request(
            "http://127.0.0.1:8423/v1/chat/completions", asked, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(call, timeout=120) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == TOKENS
        with urllib.request.urlopen("http://127.0.0.1:8423/metrics", timeout=60) as page:
            lines = [line.rpartition(" ") for line in page.read().decode().splitlines()]
    finally:
        server.process.terminate()
        server.process.wait(60)
    values = {name: float(value) for name, _, value in lines if name.startswith("opskip:")}
    assert values["opskip:rows_left_out_total"] == 64 * 10
    assert values["opskip:flops_saved_total"] > 0
    assert values['opskip:steps_total{kind="skipping",reason=""}'] == 1
    assert values['opskip:steps_total{kind="dense",reason="no visual rows"}'] == TOKENS - 1
