"""The entry point ``vllm.general_plugins``: vLLM calls `register` in each of its processes before it loads a model.

vLLM goes on without a plug-in that can't be imported, which would serve the dense model to people who asked for less.
So nothing that may fail is imported with this module.
"""

from __future__ import annotations

import importlib


def register() -> None:
    """Let vLLM's models skip if its configuration asks for it; changes nothing else."""
    importlib.import_module("opskip_compile.integrations.vllm.install").install()
