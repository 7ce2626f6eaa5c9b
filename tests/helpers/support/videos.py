"""Column "video": several frames, with text between them where the family has it, alone and beside an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from opskip_compile.models.tiny import padded
from tests.helpers.families import IMAGE, VISION_END, VISION_START
from tests.helpers.shrink import VIDEO
from tests.helpers.support.basic import bare
from tests.helpers.support.forms import Check, Member, form
from tests.helpers.support.inputs import check
from tests.helpers.support.outcome import ABSENT, SPEC, THROUGH, Install, Outcome, in_place

Parts = Sequence[int | str]


@dataclass(frozen=True)
class Clip:
    """A video as a family takes it.

    Attributes:
        runs: visual rows of each run; timestamps of two tokens stand before every run, if there are several.
        tensors: name -> tensor, or shape of random values.
        wrapped: a run stands between the tokens of start and end.
        token: of its rows.
        beside_images: the family takes a prompt with images and videos.
    """

    runs: tuple[int, ...]
    tensors: Mapping[str, tuple[int, ...] | Tensor] = field(default_factory=dict)
    wrapped: bool = False
    token: int = VIDEO
    beside_images: bool = True


def grid(patch: int, runs: tuple[int, ...], token: int = VIDEO, **more: Tensor) -> Clip:
    """Two temporal patches of 8 by 8, of which four make a row."""
    tensors = {"pixel_values_videos": (128, patch), "video_grid_thw": torch.tensor([[2, 8, 8]]), **more}
    return Clip(runs, tensors, wrapped=True, token=token, beside_images=token == VIDEO)


def frames(rows: int, count: int = 3) -> Clip:
    """Frames joined to one run."""
    return Clip((rows,), {"pixel_values_videos": (1, count, 3, 16, 16)})


AS_IMAGES = Clip(())
COMPRESSED = {"video_merge_sizes": torch.tensor([2]), "video_compression_mask": torch.arange(32) < 26}
CLIPS: dict[str, Clip] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), grid(96, (32,))),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), grid(96, (16, 16))),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v"), grid(96, (16, 16), IMAGE)),
    "minimax_m3_vl": grid(96, (16, 16)),
    "video_llama_3": grid(48, (16, 10), **COMPRESSED),
    "llava_onevision": frames(13),
    "llava_next_video": frames(12),
    "video_llava": frames(136, 8),
    **dict.fromkeys(("internvl", "smolvlm"), AS_IMAGES),
}


def video_inputs(family: Member, elements: Sequence[Parts], seed: int = 0) -> dict[str, Tensor]:
    """A batch, padded on the left, of numbers of text rows, ``"image"`` and ``"video"``."""
    clip, generator = CLIPS[family.name], torch.Generator().manual_seed(seed)
    found = family.inputs([[0] * (1 + list(parts).count("image")) for parts in elements])
    image = family.inputs([[0, 0]])["input_ids"][0].tolist()
    videos = sum(list(parts).count("video") for parts in elements)
    for name, one in clip.tensors.items():
        each = [one if isinstance(one, Tensor) else torch.randn(one, generator=generator) for _ in range(videos)]
        found[name] = torch.cat(each)

    def text(count: int) -> list[int]:
        return torch.randint(3, 180, (count,), generator=generator).tolist()

    rows, kinds = [], []
    for parts in elements:
        row: list[int] = []
        kind: list[int] = []
        for part in parts:
            new, which = text(part) if isinstance(part, int) else image, 1
            if part == "video":
                new, which = [], 2
                for run in clip.runs:
                    visual = [clip.token] * run
                    new += text(2) if len(clip.runs) > 1 else []
                    new += [VISION_START, *visual, VISION_END] if clip.wrapped else visual
            row += new
            kind += [which if token in (IMAGE, VIDEO) else 0 for token in new]
        rows.append(row)
        kinds.append(kind)
    found |= padded(rows, "left")
    if "pixel_values_videos" in found and "video_grid_thw" in found:
        found["mm_token_type_ids"] = padded(kinds, "left")["input_ids"].int()
    return found


def video_check(elements: Sequence[Parts], spec: str = SPEC, install: Install = in_place) -> Check:
    def run(family: Member) -> Outcome:
        clip = CLIPS.get(family.name)
        if clip is None:
            return Outcome(ABSENT, "the class takes no video")
        parts = elements
        if clip is AS_IMAGES:  # each frame is an image with its time before it
            parts = [[x for p in one for x in ([2, "image", 2, "image"] if p == "video" else [p])] for one in parts]
        elif not clip.beside_images and any("image" in one for one in elements):
            return Outcome(ABSENT, "the class marks frames by the image token, so it takes no image beside a video")
        return check(family, video_inputs(family, parts), spec, install)

    return run


VIDEOS: dict[str, Sequence[Parts]] = {
    "a video": ((3, "video", 5),),
    "an image and a video": ((3, "image", 2, "video", 5),),
    "batch of 3 with videos and text": ((3, "video", 5), (2, "video", 3, "video"), (9,)),
}
for words, elements in VIDEOS.items():
    form("video", words)(video_check(elements))
    form("video", f"{words}, rows through_visual")(video_check(elements, THROUGH))
for words in ("a video", "an image and a video"):
    form("video", f"{words}, torch.compile of the model")(video_check(VIDEOS[words], install=bare))
