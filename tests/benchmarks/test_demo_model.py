"""The recipe of the packaged model: its packing and its question templates."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("easy_vqa")
pytest.importorskip("transformers")

from benchmarks.demo_model import augment, packing, templates, tiny_model
from opskip_compile.demo.easy_vqa import Question, collate
from opskip_compile.models.images import load_image
from opskip_compile.models.packaged.model import (
    DemoProcessor,
    predict,
)


@pytest.fixture(scope="module")
def labels(questions: list[Question]) -> dict[int, templates.Label]:
    return templates.infer_labels(questions)


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
