"""The packaged model: its prompts, its folder, its answers."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("easy_vqa")
pytest.importorskip("transformers")

from benchmarks.demo_model import tiny_model
from opskip_compile.demo.easy_vqa import Question, accuracy, batches, collate, load_questions
from opskip_compile.models.packaged.model import (
    IMAGE_PAD,
    MODEL_DIR,
    VISION_END,
    VISION_START,
    DemoProcessor,
    encode_prompt,
    load_model,
    load_processor,
    predict,
)


def test_words_survive_a_round_trip(questions: list[Question], processor: DemoProcessor) -> None:
    tokenizer = processor.tokenizer
    for text in {q.text for q in questions}:
        ids = encode_prompt(text, 3, processor)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[5:]).replace(" ?", "?") == text
        assert ids[:5] == tokenizer.convert_tokens_to_ids([VISION_START, *[IMAGE_PAD] * 3, VISION_END])


def test_every_answer_is_one_token(processor: DemoProcessor) -> None:
    answers = {q.answer for split in ("train", "test") for q in load_questions(split)}
    assert len(answers) == 13
    assert all(len(processor.tokenizer(a, add_special_tokens=False)["input_ids"]) == 1 for a in answers)


def test_an_image_becomes_64_visual_tokens(questions: list[Question], processor: DemoProcessor) -> None:
    inputs = collate(questions[:1], processor)
    assert inputs["image_grid_thw"].tolist() == [[1, 16, 16]]
    assert inputs["pixel_values"].shape == (256, 3 * 2 * 4 * 4)
    assert int(inputs["mm_token_type_ids"].sum()) == tiny_model.VISUAL_TOKENS == 64


def test_the_shipped_folder_loads_and_matches_the_recipe(processor: DemoProcessor) -> None:
    transformers = pytest.importorskip("transformers")
    shipped = load_processor()
    assert shipped.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert shipped.tokenizer.padding_side == "left"
    assert shipped.image_processor.to_dict() == processor.image_processor.to_dict()
    model, info = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        MODEL_DIR, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.to_dict()["text_config"]["num_hidden_layers"] == 8
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) <= 10 * 1024 * 1024


@torch.inference_mode()
def test_the_shipped_model_answers_test_questions() -> None:
    test = load_questions("test")[::400]
    processor, model = load_processor(), load_model()
    found = [
        word
        for _, inputs in batches(test, processor, 16)
        for word in predict(model(**inputs, logits_to_keep=1).logits, processor)
    ]
    assert accuracy(found, test) >= 0.9
