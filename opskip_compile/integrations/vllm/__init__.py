"""Operator-level skipping inside vLLM, as a plug-in of it: see ``docs/serving.md``."""

import logging

LOG = logging.getLogger("vllm.opskip")
"""A child of vLLM's own logger: a server shows what is said here without being told to."""
