"""One engine at a time, in this process, without vLLM's own Inductor compiles; a test may ask for them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest

for name, value in {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_CI_ENV": "1",  # vLLM compiles its own decoder by Dynamo alone
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def reference() -> Any:
    """The demo's model in transformers."""
    from tests.vllm.asking import demo

    return demo()


def pytest_pycollect_makemodule() -> None:
    """Without vLLM no file here is imported: also those that import it by way of others."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not in this environment: make test-vllm has one with it", allow_module_level=True)
