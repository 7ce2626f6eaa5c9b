"""The name by which models of transformers take keys and values, and by which their results hold them."""

from __future__ import annotations

from transformers import LlamaForCausalLM

from opskip_compile._compat import cache_argument

CACHE = cache_argument(LlamaForCausalLM.forward)
OLD_CACHE = "past_key_values"  # taken by every transformers until 5.40
