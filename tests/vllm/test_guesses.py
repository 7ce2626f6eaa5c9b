"""Speculative decoding. In a process of its own: no second engine starts in one that has run the first with n-grams."""

from __future__ import annotations

from tests.vllm.asking import DEMO, check, demo, engine, sampling
from tests.vllm.test_server import PROMPTS, SCHEDULE


def test_guessed_tokens() -> None:
    """Speculative decoding by n-grams: steps with several rows of an answer."""
    guess = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    with engine(DEMO, SCHEDULE, speculative_config=guess) as llm:
        outputs = llm.generate([one.request for one in PROMPTS], sampling(12, every_row=False), use_tqdm=False)
        check(outputs, PROMPTS, demo(), SCHEDULE)
