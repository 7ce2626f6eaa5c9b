"""What a server does with prompts: every form of it gives the oracle's answer at every row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from opskip_compile.backend.reports import REPORTS
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
    model_of,
    picture,
    sampling,
)

SCHEDULE = "attend:0,2 transform:1,4 silent:5-7"
THROUGH = "silent@through_visual:5-7 transform@through_visual:1 attend:0,2 transform:4"
PROMPTS = [
    Asked(IMAGE + "how many circles are there?", [picture(64, 64, 1)]),
    Asked(f"is there a {IMAGE} red circle {IMAGE}?", [picture(96, 64, 2), picture(64, 128, 3)]),
    Asked("what is it?"),
    Asked(IMAGE, [picture(128, 128, 4)]),
]


@pytest.fixture(scope="module")
def chunked() -> Iterator[Any]:
    """Steps of 40 rows, which cut pictures apart, and a cache of prefixes.

    The tests with it come first: another engine that ends takes down what vLLM has one of in a process.
    """
    with engine(DEMO, SCHEDULE, max_num_batched_tokens=40, enable_prefix_caching=True, block_size=32) as llm:
        yield llm


def test_chunks_and_mixed_batches(chunked: Any, reference: Reference) -> None:
    """Steps of many sizes, by one graph."""
    before = REPORTS.count
    outputs = chunked.generate([one.request for one in PROMPTS], sampling(), use_tqdm=False)
    assert check(outputs, PROMPTS, reference, SCHEDULE) > 0
    counted = counters(chunked)
    assert counted.skipping > 1 and counted.dense
    assert REPORTS.count - before <= 1
    visual = [ids.count(reference.model.config.image_token_id) for ids in _ids(outputs)]
    assert counted.left_out == sum(visual) * 10


def test_the_flops_that_are_saved(chunked: Any, reference: Reference) -> None:
    """Of one prompt alone, in chunks of 40 rows: what each skipped row does without (`count_flops` has the formula)."""
    before = counters(chunked).flops
    alone = Asked(IMAGE + "how many?", [picture(128, 128, 14)])
    (output,) = chunked.generate([alone.request], sampling(every_row=False), use_tqdm=False)
    ids, size = list(output.prompt_token_ids), reference.model.config.text_config
    heads, saved = size.num_attention_heads * size.head_dim, 0
    for row, token in enumerate(ids):
        if token == reference.model.config.image_token_id:
            keys = min(len(ids), (row // 40 + 1) * 40)
            saved += 5 * 6 * size.hidden_size * size.intermediate_size  # FFNs of layers 0, 2, 5, 6 and 7
            saved += 5 * 4 * heads * (size.hidden_size + keys)  # attentions of layers 1, 4, 5, 6 and 7
    assert counters(chunked).flops - before == saved


def test_a_prefix_that_ends_inside_a_picture(chunked: Any, reference: Reference) -> None:
    """Rows that the cache has are not computed again; those after them read keys of skipped rows."""
    first = Asked(IMAGE + "how many circles are there?", [picture(64, 64, 5)])
    again = Asked(IMAGE + "is there a red circle?", first.images)
    plain = sampling(every_row=False)
    for asked in (first, again):
        outputs = chunked.generate([asked.request], plain, use_tqdm=False)
        check(outputs, [asked], reference, SCHEDULE)
    ids = list(outputs[0].prompt_token_ids)
    image = reference.model.config.image_token_id
    assert ids[outputs[0].num_cached_tokens - 1] == ids[outputs[0].num_cached_tokens] == image


def test_requests_that_come_while_others_are_answered(chunked: Any, reference: Reference) -> None:
    core, outputs = chunked.llm_engine, {}
    for step in range(200):
        if step % 3 == 0 and step // 3 < len(PROMPTS):
            core.add_request(f"late-{step // 3}", PROMPTS[step // 3].request, sampling(8, every_row=False))
        for output in core.step():
            if output.finished:
                outputs[output.request_id.partition("-")[2][:1]] = output
        if step > 12 and not core.has_unfinished_requests():
            break
    check([outputs[str(i)] for i in range(len(PROMPTS))], PROMPTS, reference, SCHEDULE)


def test_a_request_that_is_given_up(chunked: Any, reference: Reference) -> None:
    core = chunked.llm_engine
    given_up = core.add_request("given-up", PROMPTS[1].request, sampling(50, every_row=False))
    core.step()
    core.abort_request([given_up or "given-up"])
    test_requests_that_come_while_others_are_answered(chunked, reference)


def test_an_answer_of_given_words(chunked: Any, reference: Reference) -> None:
    """Other tokens are ruled out; what the model says of those that are left is, up to their sum, the oracle's."""
    from vllm.sampling_params import StructuredOutputsParams

    words = StructuredOutputsParams(choice=["red", "blue"])
    params = sampling(4, every_row=False, structured_outputs=words)
    params.ignore_eos = False
    (output,) = chunked.generate([PROMPTS[0].request], params, use_tqdm=False)
    assert output.outputs[0].text.strip() in ("red", "blue")
    off = distances(output, PROMPTS[0], reference, SCHEDULE)
    left = [row[row.isfinite()] for row in off]
    assert max(len(row) for row in left) > 1
    assert all(float((row - row[0]).abs().max()) < BOUND for row in left)


@pytest.mark.parametrize("rows", [40, 2048])
def test_text_before_an_image_is_left_out_too(rows: int, reference: Reference) -> None:
    """Also in steps that end before the image begins, and beside requests that have none."""
    late = Asked(f"is there a red circle or a blue one or a green one? {IMAGE * 2} why?", PROMPTS[1].images)
    prompts = [*PROMPTS, late]
    with engine(DEMO, THROUGH, max_num_batched_tokens=rows, enable_prefix_caching=False) as llm:
        outputs = llm.generate([one.request for one in prompts], sampling(), use_tqdm=False)
        assert check(outputs, prompts, reference, THROUGH) > 0
        error = distances(outputs[-1], late, reference, THROUGH.replace("@through_visual", "")).abs().max()
        assert error > BOUND  # the text before makes a difference


def test_a_video_with_text_between_its_frames(reference: Reference) -> None:
    from transformers import AutoProcessor

    frames = torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    about = {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    video = (frames.permute(0, 2, 3, 1).numpy(), {**about, "video_backend": "opencv", "do_sample_frames": False})
    asked = Asked(IMAGE.replace("image", "video") + "what is it?", [frames])
    request = {"prompt": asked.text, "multi_modal_data": {"video": [video]}}
    token = reference.model.config.video_token_id
    take = AutoProcessor.from_pretrained(DEMO).video_processor

    def inputs(videos: Any, ids: torch.Tensor) -> dict[str, Any]:
        taken = take(videos=videos, return_tensors="pt", do_sample_frames=False)
        named = {name: taken[name] for name in ("pixel_values_videos", "video_grid_thw")}
        return {**named, "mm_token_type_ids": (ids == token).long() * 2}

    cut = {"max_num_batched_tokens": 128, "limit_mm_per_prompt": {"image": 1, "video": 1}}
    with engine(DEMO, THROUGH, enable_prefix_caching=False, **cut) as llm:
        outputs = llm.generate([request], sampling(), use_tqdm=False)
    assert list(outputs[0].prompt_token_ids).count(token) == 128 < len(outputs[0].prompt_token_ids)
    check(outputs, [asked], Reference(reference.model, frozenset([token]), inputs), THROUGH)


def test_steps_of_one_row(reference: Reference) -> None:
    """A chunk of one visual row, which no other graph fits."""
    with engine(DEMO, THROUGH, max_num_batched_tokens=1, max_num_seqs=1, enable_prefix_caching=False) as llm:
        asked = [Asked(f"is it {IMAGE}", [picture(64, 64, 6)])]
        check(llm.generate([asked[0].request], sampling(2), use_tqdm=False), asked, reference, THROUGH)


def test_a_server_that_was_not_warmed_up(reference: Reference) -> None:
    """Its first step that skips nothing has one row: what vLLM compiles for it would not fit the next ones."""
    with engine(DEMO, "attend:all") as llm:
        for count in (1, 2, 3):
            asked = [Asked(IMAGE + "how many circles are there?", [picture(64, 64, seed)]) for seed in range(count)]
            outputs = llm.generate([one.request for one in asked], sampling(8, every_row=False), use_tqdm=False)
            check(outputs, asked, reference, "attend:all")


def test_preemption(reference: Reference) -> None:
    """So few blocks that requests lose theirs and start again."""
    few = {"num_gpu_blocks_override": 9, "block_size": 32, "enable_prefix_caching": False, "max_model_len": 256}
    with engine(DEMO, THROUGH, **few) as llm:
        scheduler, lost = llm.llm_engine.engine_core.engine_core.scheduler, []
        preempt = scheduler._preempt_request

        def counting(request: Any, *args: Any, **named: Any) -> Any:
            lost.append(request)
            return preempt(request, *args, **named)

        scheduler._preempt_request = counting
        asked = [Asked(IMAGE + "how many circles are there?", [picture(96, 96, seed)]) for seed in range(4)]
        outputs = llm.generate([one.request for one in asked], sampling(80, every_row=False), use_tqdm=False)
        assert lost
        check(outputs, asked, reference, THROUGH)


def test_by_inductor(reference: Reference) -> None:
    with engine(DEMO, THROUGH, lower="inductor", max_num_batched_tokens=64, enable_prefix_caching=False) as llm:
        outputs = llm.generate([one.request for one in PROMPTS], sampling(), use_tqdm=False)
        assert check(outputs, PROMPTS, reference, THROUGH) > 0


def test_bfloat16(reference: Reference) -> None:
    """As close to the oracle in float32 as vLLM in bfloat16 is to the dense model: DESIGN, section 2."""
    errors = []
    for schedule in (None, SCHEDULE):
        with engine(DEMO, schedule, dtype="bfloat16") as llm:
            outputs = llm.generate([one.request for one in PROMPTS], sampling(), use_tqdm=False)
            if schedule is not None:
                report = model_of(llm).opskip.report
                assert not report.misses and not report.stops and not report.remaining()
        found = [distances(*both, reference, schedule) for both in zip(outputs, PROMPTS, strict=True)]
        errors.append(float(torch.cat(found).pow(2).mean().sqrt()))
    assert 0 < errors[1] < 1.25 * errors[0]


def test_nobody_asked(reference: Reference) -> None:
    """Without settings of ours vLLM's own model runs."""
    with engine(DEMO, None) as llm:
        outputs = llm.generate([one.request for one in PROMPTS], sampling(), use_tqdm=False)
        check(outputs, PROMPTS, reference, None)


def _ids(outputs: Any) -> list[list[int]]:
    return [list(output.prompt_token_ids) for output in outputs]
