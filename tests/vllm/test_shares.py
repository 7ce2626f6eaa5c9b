"""Keep shares and levels in a server: critical rows are told of whole prompts; parts of some stay full."""

from __future__ import annotations

from pathlib import Path

import pytest

from opskip_compile.integrations.vllm.counters import IN_PARTS, exported
from opskip_compile.integrations.vllm.settings import warn_once
from opskip_compile.passes.levels import taken
from opskip_compile.schedule.left_out import LeftOut
from opskip_compile.schedule.schedule import Schedule
from tests.helpers.leveled import leveled
from tests.vllm.asking import (
    BOUND,
    DEMO,
    IMAGE,
    Asked,
    Reference,
    check,
    counters,
    distances,
    engine,
    picture,
    sampling,
)
from tests.vllm.test_server import PROMPTS

KEEP = "silent@keep=0.25:5-7 attend@keep=0.5:0,2 transform@keep=0.3:1 transform:4"
LONG = Asked(f"is there a red circle or a blue one? {IMAGE * 2} why is it so?", PROMPTS[1].images)
ASKED = [*PROMPTS, LONG]
LEVELS = ("none", "silent@keep=0.5:5-6 attend@keep=0.25:0 transform:4", "silent:5-7 attend@keep=0.1:0-3 transform:4")
WHOLE = {"enable_prefix_caching": False, "max_num_batched_tokens": 2048}


@pytest.mark.parametrize(
    "schedule", [KEEP, "silent@through_visual,keep=0.25:5-7 attend@keep=0.5:1", "transform@keep=0.1:all"]
)
def test_shares(schedule: str, reference: Reference) -> None:
    with engine(DEMO, schedule, **WHOLE) as llm:
        outputs = llm.generate([one.request for one in ASKED], sampling(), use_tqdm=False)
        check(outputs, ASKED, reference, schedule)
        error = distances(outputs[-1], LONG, reference, "none").abs().max()
        assert error > 10 * BOUND
        if schedule == KEEP:
            visual = [list(o.prompt_token_ids).count(reference.model.config.image_token_id) for o in outputs]
            kept = [LeftOut(keep=share).critical(n) for n in visual for share in (*[0.25] * 6, 0.5, 0.5, 0.3, 0)]
            assert counters(llm).left_out == 10 * sum(visual) - sum(kept)


def test_parts_of_prompts_stay_full(reference: Reference) -> None:
    """Operators that leave out whole sets do so all the same."""
    with engine(DEMO, KEEP, **{**WHOLE, "max_num_batched_tokens": 40}) as llm:
        outputs = llm.generate([one.request for one in ASKED], sampling(), use_tqdm=False)
        check(outputs, ASKED, reference, "transform:4")
        visual = sum(list(o.prompt_token_ids).count(reference.model.config.image_token_id) for o in outputs)
        assert counters(llm).left_out == visual and counters(llm).in_parts == 9 * visual


def test_a_server_that_skips_nothing_says_so(reference: Reference, caplog: pytest.LogCaptureFixture) -> None:
    """All its prompts come in parts: dense steps with that reason, and a line with the call that works."""
    warn_once.cache_clear()
    schedule = "silent@keep=0.25:5-7"
    with engine(DEMO, schedule, **{**WHOLE, "max_num_batched_tokens": 40}) as llm:
        outputs = llm.generate([PROMPTS[0].request], sampling(), use_tqdm=False)
        check(outputs, PROMPTS[:1], reference, "none")
        assert counters(llm).in_parts and not counters(llm).skipping
        assert exported()[0].labels("dense", IN_PARTS)._value.get() >= 2
    assert caplog.text.count("--no-enable-chunked-prefill") == 1


def test_prompts_that_are_never_cut(reference: Reference) -> None:
    """What that line says: more prompts than a step has room for."""
    whole = {**WHOLE, "enable_chunked_prefill": False, "max_num_batched_tokens": 256, "max_model_len": 256}
    with engine(DEMO, KEEP, **whole) as llm:
        asked = [Asked(f"{IMAGE} why?", [picture(64, 64, seed)]) for seed in range(8)]
        outputs = llm.generate([one.request for one in asked], sampling(every_row=False), use_tqdm=False)
        check(outputs, asked, reference, KEEP)
        assert counters(llm).skipping > 1 and not counters(llm).in_parts


def test_prompts_whole_and_in_parts_together(reference: Reference) -> None:
    """A prompt of a step that has the end of another one."""
    with engine(DEMO, KEEP, **{**WHOLE, "max_num_batched_tokens": 132}) as llm:
        first = Asked("red circle " * 45 + IMAGE, [picture(128, 128, 20)])
        asked = [first, Asked(f"what {IMAGE}?", [picture(64, 64, 22)])]
        outputs = llm.generate([one.request for one in asked], sampling(8, every_row=False), use_tqdm=False)
        assert len(outputs[0].prompt_token_ids) > 132 and counters(llm).skipping == 2
        check(outputs[:1], asked[:1], reference, "transform:4")
        check(outputs[1:], asked[1:], reference, KEEP)


def test_requests_that_start_again(reference: Reference) -> None:
    """Their answers so far stand behind the prompt, and are not asked what is critical."""
    few = {"num_gpu_blocks_override": 9, "block_size": 32, "max_model_len": 256}
    with engine(DEMO, KEEP, lower="inductor", **WHOLE, **few) as llm:
        asked = [Asked(IMAGE + "how many circles are there?", [picture(96, 96, seed)]) for seed in range(4)]
        outputs = llm.generate([one.request for one in asked], sampling(80, every_row=False), use_tqdm=False)
        check(outputs, asked, reference, KEEP)


def test_levels(reference: Reference, tmp_path: Path) -> None:
    """One graph: each prompt of a step takes its own."""
    for seed in range(40):
        schedule = leveled(*LEVELS, seed=seed, threshold=-0.3, num_layers=8)
        schedule.save(tmp_path / "levels.json")
        text = str(tmp_path / "levels.json")
        with engine(DEMO, text, **WHOLE) as llm:
            outputs = llm.generate([one.request for one in ASKED], sampling(), use_tqdm=False)
            check(outputs, ASKED, reference, text)
            levels = taken(Schedule.load(text).digest)
        if len(set(levels)) > 1:
            return
    raise AssertionError("no seed tells these prompts apart")
