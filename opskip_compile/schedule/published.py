"""Published schedules, as data: one spec text each, with its paper and its model.

Sources: Op-Skip, "Attend, Transform, or Silence: Operator-Level Visual Skipping for Efficient Multimodal LLM
Inference", arXiv 2606.31903, code github.com/zayan-l/Op-Skip (MIT); ShortV, arXiv 2504.00502. Layers are
zero-based. Op-Skip leaves the rows ``through_visual`` out of its silent layers, ShortV the rows ``visual``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache

from opskip_compile.schedule.geometry import Geometry

OP_SKIP = "Op-Skip, arXiv 2606.31903, github.com/zayan-l/Op-Skip"
SHORTV = "ShortV, arXiv 2504.00502"
REFERENCE_ROWS = (1024, 64)  # visual and text rows at which presets are compared

_VICUNA_7B = Geometry(32, 4096, 11008, num_heads=32, num_kv_heads=32, head_dim=128)
_VICUNA_13B = Geometry(40, 5120, 13824, num_heads=40, num_kv_heads=40, head_dim=128)

# key: printed name, model_type, decoder, and the default: of Op-Skip's presets the one whose cut at
# REFERENCE_ROWS is nearest to the paper's 33.7 %, else ShortV's only one
_MODELS: dict[str, tuple[str, str, Geometry, str]] = {
    "qwen3-vl-8b": ("Qwen3-VL-8B", "qwen3_vl", Geometry(36, 4096, 12288, 32, 8, 128), "qwen3-vl-8b/20"),
    "qwen2.5-vl-7b": (
        "Qwen2.5-VL-7B",
        "qwen2_5_vl",
        Geometry(28, 3584, 18944, 28, 4, 128),
        "qwen2.5-vl-7b/16",
    ),
    "llava-1.5-7b": ("LLaVA-1.5-7B", "llava", _VICUNA_7B, "llava-1.5-7b/32"),
    "llava-1.5-13b": ("LLaVA-1.5-13B", "llava", _VICUNA_13B, "shortv-llava-1.5-13b"),
    "llava-next-7b": ("LLaVA-NeXT-7B", "llava_next", _VICUNA_7B, "llava-next-7b/24"),
    "llava-next-13b": ("LLaVA-NeXT-13B", "llava_next", _VICUNA_13B, "shortv-llava-next-13b"),
}

# key: layers that are silent in all, then label -> what is skipped besides
_OP_SKIP: dict[str, tuple[str, dict[int, str]]] = {
    "qwen3-vl-8b": (
        "24-35",
        {
            12: "",
            16: "transform:4,20,22,23",
            20: "transform:2,4,17,18,20-23",
            24: "attend:14,15,19 transform:2,4,5,17,18,20-23",
            28: "attend:6,14,15,19 transform:2,4,5,7,9,10,17,18,20-23",
            32: "attend:6,11,14,15,19 transform:2,4,5,7-10,13,16-18,20-23",
            36: "attend:6,11,14,15,19 transform:0-5,7-10,12,13,16-18,20-23",
        },
    ),
    "qwen2.5-vl-7b": (
        "20-25,27",
        {
            8: "transform:26",
            12: "attend:16 transform:17-19,26",
            16: "attend:11,15,16 transform:3,4,17-19,26",
            20: "attend:11,15,16 transform:1-5,14,17-19,26",
            24: "attend:6,11,15,16 transform:1-5,7,9,12,14,17-19,26",
            28: "attend:0,6,10,11,15,16 transform:1-5,7-9,12-14,17-19,26",
        },
    ),
    "llava-1.5-7b": (
        "24-31",
        {
            8: "",
            12: "attend:2 transform:0,21,23",
            16: "attend:2 transform:0,3,17,20-23",
            20: "transform:0,3-5,16-23",
            24: "attend:2 transform:0,1,3-5,7,12,16-23",
            32: "attend:2,10 transform:0,1,3-9,11-23",
        },
    ),
    "llava-next-7b": (
        "24-31",
        {
            16: "attend:2 transform:17-23",
            20: "attend:2 transform:12,14-23",
            24: "attend:2 transform:0,3,4,12-23",
        },
    ),
}

_SHORTV: dict[str, str] = {
    "llava-1.5-7b": "31,29,30,28,0,26,27,25,24,22,23,21,2,3,20,18,17,12,19",
    "llava-1.5-13b": "39,32,28,36,27,37,29,30,1,38,25,31,2,26,23,34,0,33,35,22,24,21,20,17",
    "llava-next-7b": "31,29,30,28,26,27,22,24,21,23,25,20,19,17,18,15,12,0,2",
    "llava-next-13b": "39,32,29,36,27,30,37,23,25,31,26,2,28,22,33,35,34,24,38,21,20,18,1,17",
}


@dataclass(frozen=True)
class Published:
    """One schedule of a paper, as spec text, and the decoder that it was made for."""

    name: str
    model: str
    model_type: str
    source: str
    geometry: Geometry
    spec: str
    default: bool

    def facts(self) -> dict[str, str | int]:
        """The decoder as a schedule file names it."""
        sizes = {name: size for name, size in asdict(self.geometry).items() if name != "gated"}
        return {"name": self.model, "architecture": self.model_type, **sizes}


@cache
def published() -> dict[str, Published]:
    """All published schedules by their names, of each source in the order of its paper."""
    return {each.name: each for each in _all()}


def _all() -> Iterator[Published]:
    for key, (silent, by_label) in _OP_SKIP.items():
        for label, others in by_label.items():
            yield _published(f"{key}/{label}", key, OP_SKIP, f"silent@through_visual:{silent} {others}".rstrip())
    for key, layers in _SHORTV.items():
        yield _published(f"shortv-{key}", key, SHORTV, f"silent:{layers}")


def _published(name: str, key: str, source: str, spec: str) -> Published:
    model, model_type, geometry, default = _MODELS[key]
    return Published(name, model, model_type, source, geometry, spec, name == default)
