"""The built-in tiny models: a picture becomes the pixels that transformers would make of it."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
import transformers

from opskip_compile.models import tiny
from opskip_compile.models.explain_target import Request, find


def test_picture_is_turned_into_the_pixels_that_transformers_makes(image: Path) -> None:
    module = importlib.import_module("PIL.Image")
    size = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32}
    half = [0.5, 0.5, 0.5]
    theirs = transformers.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size=size, image_mean=half, image_std=half
    )
    with module.open(image) as picture:
        small = picture.convert("RGB").resize((32, 32), module.Resampling.BOX)
    want = theirs([small], return_tensors="pt")
    got = find(Request("tiny-qwen3-vl", image=image)).inputs
    assert torch.equal(got["image_grid_thw"], want["image_grid_thw"])
    assert torch.equal(got["pixel_values"], want["pixel_values"])
    whole = find(Request("tiny-llava", image=image)).inputs["pixel_values"]
    assert whole.shape == (1, 3, 16, 16)
    red, green = (128 * (whole[0, i] + 1) for i in (0, 1))
    assert torch.allclose(red, torch.arange(6.0, 256, 16).expand(16, 16), atol=1.5), "means of 4 columns"
    assert torch.allclose(green, torch.arange(4.0, 256, 16)[:, None].expand(16, 16), atol=1.5), "means of 2 rows"


def test_one_picture_stands_for_every_image() -> None:
    picture = torch.rand(3, 32, 32)
    family = tiny.FAMILIES["qwen2_5_vl"]
    one, three = family.inputs(picture=picture), family.inputs(tiny.UNEVEN, picture=picture)
    assert torch.equal(three["pixel_values"], one["pixel_values"].repeat(3, 1))
    assert "pixel_values" not in family.inputs(((4,),), picture=picture)
