"""Processors of families with video processors, without torchvision; and folders in which a file is missing."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers

pytest.importorskip("PIL.Image")

from PIL import Image

from opskip_compile.errors import OpSkipError
from opskip_compile.models import tiny
from opskip_compile.models.checkpoint import load_checkpoint
from opskip_compile.models.images import load_image
from opskip_compile.models.packaged import model as packaged
from opskip_compile.models.processors import load_processor
from opskip_compile.models.prompts import Encoder, processed
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.commands import call, one_line
from tests.helpers.processor_folders import FOLDERS, make_folder
from tests.helpers.support.zoo import ZOO

PICTURES = [[Image.new("RGB", (60, 40), (200, 30, 10))], [Image.new("RGB", (30, 40), (20, 130, 10))]]
TEMPLATE = (
    "{% for part in messages[0]['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE {% else %}user {{ part['text'] }} answer{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("family", FOLDERS)
def test_pictures_need_no_torchvision(family: str, tmp_path: Path) -> None:
    """The model itself counts features against the rows of the prompt."""
    processor = load_processor(make_folder(tmp_path, family), transformers.AutoConfig.for_model(family))
    assert type(processor).__name__ == FOLDERS[family].processor
    model = ZOO[family].build(1)
    alone = [processed(processor, [pictures], ["what is this"]) for pictures in PICTURES]
    batch = processed(processor, PICTURES, ["what is this"] * 2)
    with torch.no_grad():
        want = torch.cat([model(**inputs).logits[:, -1] for inputs in alone])
        assert torch.allclose(model(**batch).logits[:, -1], want, atol=1e-4)
    image = processor.tokenizer.convert_tokens_to_ids(FOLDERS[family].image)
    assert image == tiny.IMAGE
    rows = (batch["input_ids"] == image).sum(1)
    if "image_grid_thw" in batch:
        assert rows.tolist() == (batch["image_grid_thw"].prod(-1) // tiny.MERGE**2).tolist()
    processor.chat_template = TEMPLATE.replace("IMAGE", FOLDERS[family].image)
    chat = processed(processor, PICTURES, ["what is this"] * 2)
    assert (chat["input_ids"] == image).sum(1).tolist() == rows.tolist()
    assert type(copy.deepcopy(processor)) is type(processor)
    assert FOLDERS[family].processor in repr(processor)


def test_videos_say_what_they_need(tmp_path: Path) -> None:
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        pytest.skip("torchvision is here")
    file = make_folder(tmp_path, "qwen3_vl") / "video_preprocessor_config.json"
    file.write_text(json.dumps({"video_processor_type": "Qwen3VLVideoProcessor", "merge_size": 3}))
    processor = load_processor(tmp_path, transformers.Qwen3VLConfig())
    assert (processor.video_processor.merge_size, processor.video_processor.fps) == (3, None)
    with pytest.raises(OpSkipError, match="videos can't be read without torchvision"):
        processor(text=["<|video_pad|>"], videos=[[PICTURES[0][0]] * 2], return_tensors="pt")


def test_the_folder_of_the_demo_is_one_like_others(image: Path) -> None:
    """The same inputs as by the demo's own code."""
    model, processor = load_checkpoint(packaged.MODEL_DIR)
    pictures, texts = [load_image(image)] * 2, ["what is the color of the shape?", "is there a circle in the image?"]
    found = Encoder.of(processor).prompts([[picture] for picture in pictures], texts)
    want = packaged.encode(pictures, texts, packaged.load_processor())
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(found[name].to(value.dtype), value), name
    assert model.dtype == torch.float16
    shown = call("inspect", packaged.MODEL_DIR, "--image", image, "--schedule", "silent:7", "--json")
    assert shown.exit_code == 0, shown.output
    rows = int(want["mm_token_type_ids"][0].sum())
    assert json.loads(shown.stdout)["report"]["prompt"]["visual"] == [rows]


def qwen(folder: Path) -> Path:
    """A folder with a small Qwen2.5-VL."""
    tiny.FAMILIES["qwen2_5_vl"].build(2).save_pretrained(folder)
    return make_folder(folder, "qwen2_5_vl", TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"))


MISSING = [
    ("config.json", "model: there is no file 'FOLDER/config.json'"),
    ("tokenizer.json", "model: there is no file 'FOLDER/tokenizer.json': the tokenizer is missing"),
    ("preprocessor_config.json", "model: there is no file 'FOLDER/preprocessor_config.json': the image processor is"),
    ("model.safetensors", "model: there is no file 'FOLDER/model.safetensors': the weights are missing"),
]


@pytest.mark.parametrize(("file", "said"), MISSING, ids=[file for file, _ in MISSING])
def test_a_missing_file_is_named(file: str, said: str, tmp_path: Path, image: Path) -> None:
    folder = qwen(tmp_path / "model")
    (folder / file).unlink()
    found = one_line(call("inspect", folder, "--image", image))
    assert found.startswith(said.replace("FOLDER", str(folder)))
    assert not found.endswith("...") and len(found.removeprefix("model: ")) > 40


def test_without_a_chat_template_the_image_token_stands_before_the_words(tmp_path: Path, image: Path) -> None:
    folder = qwen(tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(folder)
    with_template = processed(load_processor(folder, config), [[load_image(image)]], ["this"])["input_ids"].tolist()
    (folder / "chat_template.jinja").unlink()
    without = processed(load_processor(folder, config), [[load_image(image)]], ["this"])["input_ids"].tolist()
    user, answer = 6, 7
    assert [[row for row in with_template[0] if row not in (user, answer)]] == without


def test_a_want_of_a_chat_template_is_named_where_a_prompt_is_refused(tmp_path: Path, image: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    table = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({**table, "image_token": "<nothing>"}))
    found = one_line(call("inspect", folder, "--image", image))
    assert "refuses image and prompt" in found or "made a prompt without visual rows" in found
    assert found.endswith("it has no chat template (chat_template.jinja)")


def test_settings_that_only_processor_config_has(tmp_path: Path, image: Path) -> None:
    """LLaVA's image processor and tokenizer alone don't say how many rows an image takes."""
    folder = make_checkpoint(tmp_path / "model")
    file = folder / "processor_config.json"
    table = json.loads(file.read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(table["image_processor"]))
    file.unlink()
    said = "which gives patch_size, vision_feature_select_strategy of the LlavaProcessor"
    found = one_line(call("inspect", folder, "--image", image))
    assert found.startswith(f"model: there is no file {str(file)!r}, {said}")
    file.write_text(json.dumps({"processor_class": "LlavaProcessor", "patch_size": 4}))
    found = one_line(call("inspect", folder, "--image", image))
    assert found.startswith(f"model: {str(file)!r} does not give vision_feature_select_strategy of the LlavaProcessor")


def test_weights_in_parts(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    (folder / "model.safetensors").rename(folder / shards["a"])
    said = f"model: there is no file '{folder / shards['b']}', which model.safetensors.index.json names"
    with pytest.raises(OpSkipError, match=said):
        load_checkpoint(folder)
    index.unlink()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
    (folder / "model.safetensors").write_bytes(pointer)
    with pytest.raises(OpSkipError, match=r"model: '.*model.safetensors' is a pointer of Git LFS"):
        load_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(OpSkipError, match=r"model: no weights could be loaded from '.*'"):
        load_checkpoint(folder)


@pytest.mark.parametrize("file", ["processor_config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_a_file_that_is_no_json_is_named(file: str, tmp_path: Path, image: Path) -> None:
    folder = qwen(tmp_path / "model")
    (folder / file).write_text("{")
    found = one_line(call("inspect", folder, "--image", image))
    assert file in found


def test_a_processor_that_needs_torchvision_for_pictures_says_so(tmp_path: Path, image: Path) -> None:
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        pytest.skip("torchvision is here")
    folder = qwen(tmp_path / "model")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "processor_class": "PixtralProcessor"}))
    found = one_line(call("inspect", folder, "--image", image))
    assert "PixtralProcessor needs torchvision: pip install torchvision" in found


@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen2Config", "T5Config"])
def test_a_text_model_has_nothing_visual(kind: str, tmp_path: Path, image: Path) -> None:
    config = getattr(transformers, kind)()
    config.save_pretrained(tmp_path)
    said = f"model: {kind} is no model of text and images: it has no visual rows to skip"
    assert one_line(call("inspect", tmp_path)).startswith(said)
    assert one_line(call("inspect", tmp_path, "--image", image)) == said
    with pytest.raises(OpSkipError, match=said):
        load_checkpoint(tmp_path)


def test_a_text_decoder_is_shown_as_if_rows_were_visual(tmp_path: Path) -> None:
    """For models of one's own around a decoder of transformers."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    transformers.LlamaConfig(num_hidden_layers=2, **sizes).save_pretrained(tmp_path)
    shown = call("inspect", tmp_path, "--visual", "8", "--schedule", "silent:1", "--json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["report"]["prompt"]["visual"] == [8]
