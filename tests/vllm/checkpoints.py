"""Small checkpoints of several families with random weights, which transformers and vLLM load from the same folder.

Their answers mean nothing, but they depend on the image: weights are large enough for a row that an operator left out
to show in every logit after it. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

VOCAB, WIDTH, HEAD = 128, 128, 32  # a head size that attention of vLLM has on a CPU
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
FIRST = len(SPECIAL)  # the id of a family's first special word
WORDS = ("how", "many", "red", "circles", "are", "there", "is", "what", "colour", "the", "square", "left", "of", "?")
SIZES = ((32, 32), (64, 32), (32, 64), (64, 64))  # width and height


@dataclass(frozen=True)
class Family:
    """What a family's folder holds. Names of classes are those of transformers.

    Attributes:
        name: what the names of its config and its model begin with.
        images: the class that processes images.
        words: its special words; their ids count from `FIRST`.
        image: what stands for an image in a prompt.
        visual: the word that stands for one visual row once vLLM has read the prompt.
        text, vision, fields: of the config of the decoder, of the vision tower, of the whole.
        pixels, settings: of the processor of images, of the processor.
        processor: what the name of the processor begins with; empty for ``name``.
        named: special words by the name that the tokenizer has for them.
        grid: the model is told which rows are visual, as it gives them positions of their own.
        drop: what the processor of images gives beside the model's inputs.
        sizes: width and height of images that it takes.
        needs: a package that its processor can't do without.
        published: a parameter as published checkpoints have it, from how transformers writes it: it reads both, and
            vLLM reads the first only.
    """

    name: str
    images: str
    words: tuple[str, ...]
    image: str
    visual: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    fields: Mapping[str, Any]
    pixels: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    processor: str = ""
    named: Mapping[str, str] = field(default_factory=dict)
    grid: bool = False
    drop: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = SIZES
    needs: str = ""
    published: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]] = lambda name, weight: (name, weight)

    def model(self, layers: int) -> Any:
        """The model at small size, with the weights of its class."""
        kind = f"{self.name}ForConditionalGeneration"
        config = getattr(transformers, f"{self.name}Config")(
            architectures=[kind],
            text_config=_text(layers, **self.text),
            vision_config=dict(self.vision),
            tie_word_embeddings=False,
            **self.fields,
        )
        return getattr(transformers, kind)(config).eval()


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and how its family is asked."""

    folder: Path
    family: Family

    @property
    def visual_ids(self) -> frozenset[int]:
        """Ids of tokens that stand for visual rows in the prompt that vLLM has expanded."""
        return frozenset({FIRST + self.family.words.index(self.family.visual)})

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of images that it takes."""
        return self.family.sizes

    def prompt(self, text: str, images: int) -> str:
        """``text``, words of `WORDS`, with images among its words; the first one comes before it."""
        words = text.split()
        cuts = [i * len(words) // max(1, images) for i in range(images)] + [len(words)]
        parts = [" ".join(words[a:b]) for a, b in pairwise(cuts)]
        return " ".join(f"{self.family.image} {part}" for part in parts) if images else text

    def model(self) -> Any:
        """The checkpoint in transformers, in single precision."""
        kind = transformers.AutoModelForImageTextToText
        return kind.from_pretrained(self.folder, dtype=torch.float32, attn_implementation="sdpa").eval()

    def visual(self, ids: Sequence[int]) -> torch.Tensor:
        """Bool ``(1, rows)``: the visual rows of an expanded prompt."""
        return torch.isin(torch.tensor([list(ids)]), torch.tensor(sorted(self.visual_ids)))

    def inputs(self, images: Sequence[Any], ids: Sequence[int]) -> dict[str, Any]:
        """Keyword arguments of the model of transformers.

        Args:
            images: of `PIL.Image`, in the order of the prompt.
            ids: the expanded prompt, with answered tokens after it or without.
        """
        inputs = {"input_ids": torch.tensor([list(ids)])}
        if not images:
            return inputs
        given = self._pixels(list(images), return_tensors="pt")
        inputs |= {name: value for name, value in given.items() if name not in self.family.drop}
        if self.family.grid:
            inputs["mm_token_type_ids"] = self.visual(ids).int()
        return inputs

    @cached_property
    def _pixels(self) -> Any:
        return transformers.AutoImageProcessor.from_pretrained(self.folder)


def build(family: str, folder: Path, layers: int = 4, seed: int = 0) -> Checkpoint:
    """Write config, weights, tokenizer and processor of a family into ``folder``."""
    about = FAMILIES[family]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = about.model(layers)
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            else:
                parameter.normal_(0, 0.5 if "embed" in name else 0.1)
    model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    save_file(dict(about.published(*each) for each in load_file(weights).items()), weights, {"format": "pt"})
    _write_tokenizer(about, folder)
    processor = {"processor_class": f"{about.processor or about.name}Processor"}
    pixels = {**PIXELS, **about.pixels, "image_processor_type": about.images, **processor}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    (folder / "processor_config.json").write_text(json.dumps({**about.settings, **processor}))
    return Checkpoint(folder, about)


def _write_tokenizer(about: Family, folder: Path) -> None:
    words = (*SPECIAL, *about.words, *WORDS)
    words += tuple(f"word{i}" for i in range(len(words), VOCAB))
    table = {word: i for i, word in enumerate(words)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(about.words),
        **({"extra_special_tokens": dict(about.named)} if about.named else {}),
    ).save_pretrained(folder)


def _inner_vision_model(name: str, weight: torch.Tensor) -> tuple[str, torch.Tensor]:
    return name.replace("vision_tower.", "vision_tower.vision_model."), weight


def _columns_first(name: str, weight: torch.Tensor) -> tuple[str, torch.Tensor]:
    return name, weight.transpose(1, 2).contiguous() if ".experts." in name else weight


def _text(layers: int, **fields: object) -> dict[str, Any]:
    """A decoder; a family has fields of its own beside these."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 160,
        "num_hidden_layers": layers,
        "num_attention_heads": WIDTH // HEAD,
        "num_key_value_heads": 2,
        "head_dim": HEAD,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **fields,
    }


def _rope(**fields: object) -> dict[str, Any]:
    """Rotary parameters of a decoder whose positions have three axes; the sections fill half of a head."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6], **fields}}


def _ids(names: str) -> dict[str, int]:
    """Fields of a config for a family's special words, in their order."""
    return {name: FIRST + i for i, name in enumerate(names.split())}


SIDE = {"height": 32, "width": 32}
PIXELS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "rescale_factor": 1 / 255,
}
VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {"patch_size": 4, "temporal_patch_size": 2}
GRID_VISION = {
    **PATCHES,
    "spatial_merge_size": 2,
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
}
QWEN3_VISION = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}


def _qwen(name: str, text: Mapping[str, Any], vision: Mapping[str, Any], processor: str = "", **more: Any) -> Family:
    return Family(
        name,
        "Qwen2VLImageProcessor",
        ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"),
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|image_pad|>",
        text,
        {**GRID_VISION, **vision},
        _ids("vision_start_token_id image_token_id video_token_id vision_end_token_id"),
        {**PATCHES, "merge_size": 2, "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}},
        processor=processor,
        grid=True,
        **more,
    )


def _splitting(name: str, needs: str = "") -> Family:
    """A large image comes in tiles of one size, and as a whole in that size."""
    tiles = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
    return Family(
        name,
        f"{name}ImageProcessor",
        ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>", *tiles),
        "<image>",
        "<image>",
        {"model_type": "llama"},
        {**VISION, "image_size": 32, "patch_size": 4},
        {"image_token_id": FIRST, "pad_token_id": 0},
        {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}, "do_pad": True},
        {"image_seq_len": 16},
        drop=("rows", "cols"),
        needs=needs,
    )


TILES = [[32, 32], [32, 64], [64, 32], [64, 64]]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "norm_topk_prob": True}
INTERN_NAMES = {
    "start_image_token": "<img>",
    "context_image_token": "<IMG_CONTEXT>",
    "end_image_token": "</img>",
    "video_token": "<video>",
}
GLM_NAMES = "image_token_id video_token_id image_start_token_id image_end_token_id"

FAMILIES: dict[str, Family] = {
    "llava": Family(
        "Llava",
        "CLIPImageProcessor",
        ("<image>",),
        "<image>",
        "<image>",
        {"model_type": "llama"},
        {**VISION, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 64},
        {"image_token_index": FIRST, "image_seq_length": 16},
        {"size": {"shortest_edge": 32}, "crop_size": SIDE, "do_center_crop": True},
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        published=_inner_vision_model,
    ),
    "qwen2_5_vl": _qwen("Qwen2_5_VL", _rope(), {"window_size": 16, "fullatt_block_indexes": [1]}),
    "qwen3_vl": _qwen("Qwen3VL", _rope(mrope_interleaved=True), QWEN3_VISION),
    "qwen3_vl_moe": _qwen(
        "Qwen3VLMoe", {**_rope(mrope_interleaved=True), **EXPERTS}, QWEN3_VISION, "Qwen3VL", published=_columns_first
    ),
    "internvl": Family(
        "InternVL",
        "GotOcr2ImageProcessor",
        tuple(INTERN_NAMES.values()),
        "<IMG_CONTEXT>",
        "<IMG_CONTEXT>",
        {"model_type": "qwen2"},
        {**VISION, "image_size": [32, 32], "patch_size": [4, 4]},
        {"image_token_id": FIRST + 1, "image_seq_length": 16},
        {"size": SIDE, "crop_to_patches": True, "min_patches": 1, "max_patches": 4},
        {"image_seq_length": 16},
        named=INTERN_NAMES,
        drop=("num_patches",),
    ),
    "llava_onevision": Family(
        "LlavaOnevision",
        "LlavaOnevisionImageProcessor",
        ("<image>", "<video>"),
        "<image>",
        "<image>",
        {"model_type": "qwen2"},
        {**VISION, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "vision_use_head": False},
        {**_ids("image_token_index video_token_index"), "image_grid_pinpoints": TILES},
        {"size": SIDE, "image_grid_pinpoints": TILES},
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        sizes=((32, 32), (64, 32), (32, 64), (64, 52)),  # vLLM reserves for a shape that it takes for the largest
        published=_inner_vision_model,
    ),
    "smolvlm": _splitting("SmolVLM", "num2words"),
    "idefics3": _splitting("Idefics3"),
    "glm4v": Family(
        "Glm4v",
        "Glm4vImageProcessor",
        ("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
        "<|begin_of_image|><|image|><|end_of_image|>",
        "<|image|>",
        # transformers has biases whatever attention_bias says, vLLM asks it
        {**_rope(mrope_section=[2, 3, 3], partial_rotary_factor=0.5), "attention_bias": True},
        {**GRID_VISION, "image_size": 32},
        _ids(f"{GLM_NAMES} video_start_token_id video_end_token_id"),
        {**PATCHES, "merge_size": 2, "size": {"shortest_edge": 2 * 32 * 32, "longest_edge": 2 * 64 * 64}},
        grid=True,
    ),
    "mistral3": Family(
        "Mistral3",
        "PixtralImageProcessor",
        ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        "[IMG]",
        "[IMG]",
        {"model_type": "mistral", "sliding_window": None},
        {**VISION, "model_type": "pixtral", "image_size": 64, "patch_size": 4, "head_dim": 32},
        {"image_token_index": FIRST, "spatial_merge_size": 2, "vision_feature_layer": -1},
        {"size": {"longest_edge": 64}, "patch_size": {"height": 8, "width": 8}},
        {"patch_size": 4, "spatial_merge_size": 2},
        processor="Pixtral",
    ),
}
