"""The demo's data: prompts, images, collation, scores, and the recipe's packing and question templates."""

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
from opskip_compile.demo import data
from opskip_compile.errors import OpSkipError


@pytest.fixture(scope="module")
def questions() -> list[data.Question]:
    return data.load_questions("train")


@pytest.fixture(scope="module")
def processor(questions: list[data.Question]) -> data.DemoProcessor:
    return tiny_model.build_processor(text for q in questions for text in (q.text, q.answer))


@pytest.fixture(scope="module")
def labels(questions: list[data.Question]) -> dict[int, templates.Label]:
    return templates.infer_labels(questions)


def test_sizes_of_the_splits(questions: list[data.Question]) -> None:
    assert (len(questions), len(data.load_questions("test"))) == (38_575, 9_673)


def test_words_survive_a_round_trip(questions: list[data.Question], processor: data.DemoProcessor) -> None:
    tokenizer = processor.tokenizer
    for text in {q.text for q in questions}:
        ids = data.encode_prompt(text, 3, processor)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[5:]).replace(" ?", "?") == text
        assert ids[:5] == tokenizer.convert_tokens_to_ids([data.VISION_START, *[data.IMAGE_PAD] * 3, data.VISION_END])


def test_every_answer_is_one_token(processor: data.DemoProcessor) -> None:
    answers = {q.answer for split in ("train", "test") for q in data.load_questions(split)}
    assert len(answers) == 13
    assert all(len(processor.tokenizer(a, add_special_tokens=False)["input_ids"]) == 1 for a in answers)


def test_an_image_becomes_64_visual_tokens(questions: list[data.Question], processor: data.DemoProcessor) -> None:
    inputs = data.collate(questions[:1], processor)
    assert inputs["image_grid_thw"].tolist() == [[1, 16, 16]]
    assert inputs["pixel_values"].shape == (256, 3 * 2 * 4 * 4)
    assert int(inputs["mm_token_type_ids"].sum()) == tiny_model.VISUAL_TOKENS == 64


def test_collate_pads_on_the_left(questions: list[data.Question], processor: data.DemoProcessor) -> None:
    batch = sorted(questions[:40], key=lambda q: len(q.text))
    batch = [batch[0], batch[-1]]
    inputs = data.collate(batch, processor)
    pad = int((inputs["attention_mask"][0] == 0).sum())
    assert pad > 0 and inputs["attention_mask"][1].all()
    assert inputs["attention_mask"][0].tolist() == [0] * pad + [1] * (inputs["input_ids"].shape[1] - pad)
    assert (inputs["input_ids"][0, :pad] == processor.tokenizer.pad_token_id).all()
    assert inputs["input_ids"][:, -1].tolist() == [processor.token_id("?")] * 2


def test_packed_patches_are_those_of_the_image_processor(
    questions: list[data.Question], processor: data.DemoProcessor
) -> None:
    images = [data.load_image(questions[i].image_path) for i in (0, 30)]
    expected = processor.image_processor(images, return_tensors="pt")
    found = packing.patchify(np.stack([np.asarray(image) for image in images]), processor)
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])


@torch.inference_mode()
def test_packed_logits_are_the_plain_ones(questions: list[data.Question], processor: data.DemoProcessor) -> None:
    torch.manual_seed(0)
    model: Any = tiny_model.build_model(processor).eval()
    groups = [[q for q in questions if q.image_id == image][:6] for image in (0, 1)]
    pictures = np.stack([np.asarray(data.load_image(group[0].image_path)) for group in groups])
    packed = packing.pack(pictures, [[(q.text, q.answer) for q in group] for group in groups], processor)
    element, row = packed.answer_rows.unbind(1)
    found = model(**packed.inputs).logits[element, row]
    flat = [q for group in groups for q in group]
    expected = model(**data.collate(flat, processor)).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert data.predict(expected[:, None], processor) == data.predict(found[:, None], processor)
    assert packed.answer_ids.tolist() == [processor.token_id(q.answer) for q in flat]


def test_the_answer_rule_reproduces_every_training_answer(
    questions: list[data.Question], labels: dict[int, templates.Label]
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


def test_a_contradiction_is_refused(questions: list[data.Question]) -> None:
    yes = data.Question(0, questions[0].image_path, "is there a circle?", "yes")
    no = data.Question(0, questions[0].image_path, "is there a circle?", "no")
    with pytest.raises(ValueError, match=r"images \[0\]"):
        templates.infer_labels([yes, no])


def test_a_varied_picture_shows_its_label(questions: list[data.Question], labels: dict[int, templates.Label]) -> None:
    paths = {q.image_id: q.image_path for q in questions}
    rng = random.Random(0)
    for image_id in list(labels)[:20]:
        sprite = augment.cut(np.asarray(data.load_image(paths[image_id])), labels[image_id])
        picture, label = augment.vary(sprite, rng, original=0.0)
        assert picture.shape == (64, 64, 3) and label.shape == labels[image_id].shape
        assert (picture == np.array(templates.COLORS[label.color])).all(-1).sum() > 20


def test_scores() -> None:
    asked = [data.Question(0, Path(), "", answer) for answer in ("yes", "no", "red", "teal")]
    assert data.accuracy(["yes", "no", "red", "blue"], asked) == 0.75
    assert data.agreement(["yes", "no"], ["yes", "yes"]) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: data.load_questions("dev"), "train"),
        (lambda p: data.collate([], p), "at least one"),
        (lambda p: data.encode_prompt("", 64, p), "empty"),
        (lambda p: data.agreement(["yes"], []), "compare 1"),
        (lambda p: data.load_processor(Path("/nowhere")), "opskip-compile"),
        (lambda p: data.load_image(Path("/nowhere.png")), "cannot read"),
        (lambda p: list(data.batches([], p, 0)), "positive"),
    ],
)
def test_bad_input_is_one_clear_error(processor: data.DemoProcessor, call: Any, message: str) -> None:
    with pytest.raises(OpSkipError, match=message):
        call(processor)


def test_a_missing_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(OpSkipError, match=r"pip install \"opskip-compile\[demo\]\""):
        data.load_questions("test")


def test_a_malformed_package_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import easy_vqa

    monkeypatch.setattr(easy_vqa, "get_test_image_paths", dict)
    with pytest.raises(OpSkipError, match=r"incomplete .* reinstall the demo"):
        data.load_questions("test")


def test_the_shipped_folder_loads_and_matches_the_recipe(processor: data.DemoProcessor) -> None:
    transformers = pytest.importorskip("transformers")
    shipped = data.load_processor()
    assert shipped.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert shipped.tokenizer.padding_side == "left"
    assert shipped.image_processor.to_dict() == processor.image_processor.to_dict()
    model, info = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        data.MODEL_DIR, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.to_dict()["text_config"]["num_hidden_layers"] == 8
    assert sum(file.stat().st_size for file in data.MODEL_DIR.iterdir()) <= 10 * 1024 * 1024


@torch.inference_mode()
def test_the_shipped_model_answers_test_questions() -> None:
    test = data.load_questions("test")[::400]
    processor, model = data.load_processor(), data.load_model()
    found = [
        word
        for _, inputs in data.batches(test, processor, 16)
        for word in data.predict(model(**inputs, logits_to_keep=1).logits, processor)
    ]
    assert data.accuracy(found, test) >= 0.9
