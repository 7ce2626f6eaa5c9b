"""Workers in processes of their own, as a server has them: the plug-in is found there by its entry point."""

from __future__ import annotations

import pytest

from tests.vllm.asking import DEMO, check, demo, engine, sampling
from tests.vllm.test_server import PROMPTS, SCHEDULE


def test_two_ranks_of_a_tensor_parallel_group(capfd: pytest.CaptureFixture[str]) -> None:
    with engine(DEMO, SCHEDULE, tensor_parallel_size=2, max_num_batched_tokens=40) as llm:
        outputs = llm.generate([one.request for one in PROMPTS], sampling(), use_tqdm=False)
        assert check(outputs, PROMPTS, demo(), SCHEDULE) > 0
    assert "computed in full" not in capfd.readouterr().err
