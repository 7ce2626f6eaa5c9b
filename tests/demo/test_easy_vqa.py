"""The questions of easy-VQA and the packaged model: prompts, images, scores, and the recipe that trained it."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("easy_vqa")
pytest.importorskip("transformers")

from benchmarks.demo_model import augment, packing, templates, tiny_model
from opskip_compile.demo.easy_vqa import Question, accuracy, agreement, batches, collate, load_questions
from opskip_compile.errors import OpSkipError
from opskip_compile.models.images import load_image
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


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return load_questions("train")


@pytest.fixture(scope="module")
def processor(questions: list[Question]) -> DemoProcessor:
    return tiny_model.build_processor(text for q in questions for text in (q.text, q.answer))


@pytest.fixture(scope="module")
def labels(questions: list[Question]) -> dict[int, templates.Label]:
    return templates.infer_labels(questions)


def test_sizes_of_the_splits(questions: list[Question]) -> None:
    assert (len(questions), len(load_questions("test"))) == (38_575, 9_673)


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


def test_collate_pads_on_the_left(questions: list[Question], processor: DemoProcessor) -> None:
    batch = sorted(questions[:40], key=lambda q: len(q.text))
    batch = [batch[0], batch[-1]]
    inputs = collate(batch, processor)
    pad = int((inputs["attention_mask"][0] == 0).sum())
    assert pad > 0 and inputs["attention_mask"][1].all()
    assert inputs["attention_mask"][0].tolist() == [0] * pad + [1] * (inputs["input_ids"].shape[1] - pad)
    assert (inputs["input_ids"][0, :pad] == processor.tokenizer.pad_token_id).all()
    assert inputs["input_ids"][:, -1].tolist() == [processor.token_id("?")] * 2


def test_packed_patches_are_those_of_the_image_processor(questions: list[Question], processor: DemoProcessor) -> None:
    images = [load_image(questions[i].image_path) for i in (0, 30)]
    expected = processor.image_processor(images, return_tensors="pt")
    found = packing.patchify(np.stack([np.asarray(image) for image in images]), processor)
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])


@torch.inference_mode()
def test_packed_logits_are_the_plain_ones(questions: list[Question], processor: DemoProcessor) -> None:
    torch.manual_seed(0)
    model: Any = tiny_model.build_model(processor).eval()
    groups = [[q for q in questions if q.image_id == image][:6] for image in (0, 1)]
    pictures = np.stack([np.asarray(load_image(group[0].image_path)) for group in groups])
    packed = packing.pack(pictures, [[(q.text, q.answer) for q in group] for group in groups], processor)
    element, row = packed.answer_rows.unbind(1)
    found = model(**packed.inputs).logits[element, row]
    flat = [q for group in groups for q in group]
    expected = model(**collate(flat, processor)).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert predict(expected[:, None], processor) == predict(found[:, None], processor)
    assert packed.answer_ids.tolist() == [processor.token_id(q.answer) for q in flat]


def test_the_answer_rule_reproduces_every_training_answer(
    questions: list[Question], labels: dict[int, templates.Label]
) -> None:
    candidates = templates.consistent_labels(questions)
    assert all(candidates.values())  # each image has a label under which all of its answers are right
    assert len(candidates) == 4_000 and len(labels) > 3_500
    assert len(templates.templates(questions)) == 24


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("what color is the circle?", "red"),
        ("what is the red shape?", "circle"),
        ("is there a circle?", "yes"),
        ("is no circle present?", "no"),
        ("does the image not contain a teal shape?", "yes"),
        ("is there a triangle in the image?", "no"),
    ],
)
def test_answers(text: str, expected: str) -> None:
    assert templates.answer(text, templates.Label("circle", "red")) == expected


def test_a_contradiction_is_refused(questions: list[Question]) -> None:
    yes = Question(0, questions[0].image_path, "is there a circle?", "yes")
    no = Question(0, questions[0].image_path, "is there a circle?", "no")
    with pytest.raises(ValueError, match=r"images \[0\]"):
        templates.infer_labels([yes, no])


def test_a_varied_picture_shows_its_label(questions: list[Question], labels: dict[int, templates.Label]) -> None:
    paths = {q.image_id: q.image_path for q in questions}
    rng = random.Random(0)
    for image_id in list(labels)[:20]:
        sprite = augment.cut(np.asarray(load_image(paths[image_id])), labels[image_id])
        picture, label = augment.vary(sprite, rng, original=0.0)
        assert picture.shape == (64, 64, 3) and label.shape == labels[image_id].shape
        assert (picture == np.array(templates.COLORS[label.color])).all(-1).sum() > 20


def test_scores() -> None:
    asked = [Question(0, Path(), "", answer) for answer in ("yes", "no", "red", "teal")]
    assert accuracy(["yes", "no", "red", "blue"], asked) == 0.75
    assert agreement(["yes", "no"], ["yes", "yes"]) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: load_questions("dev"), "train"),
        (lambda p: collate([], p), "at least one"),
        (lambda p: encode_prompt("", 64, p), "empty"),
        (lambda p: agreement(["yes"], []), "compare 1"),
        (lambda p: load_processor(Path("/nowhere")), "opskip-compile"),
        (lambda p: load_image(Path("/nowhere.png")), "cannot read"),
        (lambda p: list(batches([], p, 0)), "positive"),
    ],
)
def test_bad_input_is_one_clear_error(processor: DemoProcessor, call: Any, message: str) -> None:
    with pytest.raises(OpSkipError, match=message):
        call(processor)


def test_a_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(OpSkipError, match=r"pip install \"opskip-compile\[demo\]\""):
        load_questions("test")


def test_a_malformed_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["easy_vqa"], "get_test_image_paths", dict)
    with pytest.raises(OpSkipError, match=r"incomplete .* reinstall the demo"):
        load_questions("test")


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
