"""Models with something around their layers: device maps and off-loading of accelerate, activation checkpointing."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.attachment.around import Surroundings
from opskip_compile.passes.refusal import Why
from tests.helpers.families import FAMILIES, UNEVEN, visual_mask
from tests.helpers.own_decoder import EAGER

accelerate = pytest.importorskip("accelerate")
hooks = pytest.importorskip("accelerate.hooks")

pytestmark = pytest.mark.usefixtures("fresh")
SPEC = "silent:1 attend:0"
SKIPPED = {("0.ffn",), ("1.attention", "1.ffn")}
CPU = torch.device("cpu")


def device_map(model: nn.Module, folder: Path) -> None:
    """As `dispatch_model` does it for a device map: a hook on every block moves what the block gets."""
    for part in (*model.get_decoder().layers, model.get_decoder().norm, model.get_input_embeddings()):
        hooks.add_hook_to_module(part, hooks.AlignDevicesHook(execution_device=CPU))
    hooks.add_hook_to_module(model, hooks.AlignDevicesHook(io_same_device=True))


def on_the_decoder(model: nn.Module, folder: Path) -> None:
    hooks.add_hook_to_module(model.get_decoder(), hooks.AlignDevicesHook(execution_device=CPU))


def cpu_offload(model: nn.Module, folder: Path) -> None:
    accelerate.cpu_offload(model, execution_device=CPU)


def disk_offload(model: nn.Module, folder: Path) -> None:
    accelerate.disk_offload(model, str(folder), execution_device=CPU)


@contextlib.contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", opskip.NothingSkippedWarning)
        yield


def assert_skips(model: nn.Module, inputs: dict[str, Tensor], want: Tensor, layers: set[tuple[str, ...]]) -> None:
    with no_warning():
        got = model(**inputs).logits
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert {report.skipped for report in opskip.reports() if report.rewritten} == layers


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@pytest.mark.parametrize(
    ("wrap", "layers"),
    [
        (device_map, SKIPPED),
        (on_the_decoder, {("0.ffn", "1.attention", "1.ffn")}),
        (cpu_offload, SKIPPED),
        (disk_offload, SKIPPED),
    ],
)
def test_hooks_of_accelerate(
    name: str, wrap: Callable[[nn.Module, Path], None], layers: set[tuple[str, ...]], tmp_path: Path
) -> None:
    """It skips inside of the hooks, and `remove` leaves the hooks where they were."""
    family = FAMILIES[name]
    model, inputs, text = family.build(2), family.inputs(UNEVEN), family.inputs(((9,),))
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = model(**inputs).logits
    dense, words = model(**inputs).logits, model(**text).logits
    wrap(model, tmp_path)
    opskip.compile(model, SPEC, options=EAGER)
    assert_skips(model, inputs, want, layers)
    with no_warning():
        assert (model(**text).logits - words).abs().max() <= 1e-4 * words.abs().max()
        assert model.generate(**family.inputs(), max_new_tokens=3, do_sample=False).shape[1] > 3
    opskip.remove(model)
    assert (model(**inputs).logits - dense).abs().max() <= 1e-5 * dense.abs().max()
    assert not any("run" in str(vars(part).get("_old_forward")) for part in model.modules())


def test_a_device_map_after_compile(tmp_path: Path) -> None:
    """The decoder is one graph before it, goes by layer with it, and is one graph again when the hooks are gone."""
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = model(**inputs).logits
    opskip.compile(model, SPEC, options=EAGER)
    whole = {("0.ffn", "1.attention", "1.ffn")}
    assert_skips(model, inputs, want, whole)
    device_map(model, tmp_path)
    assert_skips(model, inputs, want, whole | SKIPPED)
    hooks.remove_hook_from_submodules(model)
    count = len(opskip.reports())
    assert_skips(model, inputs, want, whole | SKIPPED)
    assert len(opskip.reports()) <= count + 1
    opskip.remove(model)
    assert not any(getattr(vars(layer).get("forward"), "__name__", "") == "run" for layer in model.get_decoder().layers)


def hook(part: nn.Module) -> None:
    hooks.add_hook_to_module(part, hooks.AlignDevicesHook(execution_device=CPU))


@pytest.mark.parametrize("part", ["layers.1", "layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"])
def test_hooks_of_one_layer_in_the_middle(part: str) -> None:
    """Around it, or around a part of it; they may come after the first forward, and go again."""
    family = FAMILIES["llava"]
    model, inputs = family.build(3), family.inputs(UNEVEN)
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = model(**inputs).logits
    opskip.compile(model, SPEC, options=EAGER)
    whole = {("0.ffn", "1.attention", "1.ffn")}
    assert_skips(model, inputs, want, whole)
    hook(model.get_decoder().get_submodule(part))
    assert_skips(model, inputs, want, whole | SKIPPED)
    hooks.remove_hook_from_submodules(model)
    count = len(opskip.reports())
    assert_skips(model, inputs, want, whole | SKIPPED)
    assert len(opskip.reports()) <= count + 1


def test_a_part_that_is_replaced_is_watched_as_well() -> None:
    """As an adapter replaces linear layers: no part is gone, but others are there."""
    model = FAMILIES["llava"].build(3)
    layers = model.get_decoder().layers
    around = Surroundings(list(layers))
    assert not around.part_the_decoder()
    layers[1].mlp.up_proj = nn.Sequential(layers[1].mlp.up_proj)
    assert not around.part_the_decoder()
    hook(layers[1].mlp.up_proj)
    assert around.part_the_decoder()
    twin = copy.deepcopy(around)
    hooks.remove_hook_from_submodules(model)
    assert not around.part_the_decoder()
    assert twin.part_the_decoder()


def checkpointed(model: nn.Module, folder: Path) -> None:
    model.train()
    for layer in model.get_decoder().layers:
        layer.gradient_checkpointing = True


@pytest.mark.parametrize("wrap", [device_map, checkpointed])
def test_explain_is_of_the_decoder_without_what_parts_it(
    wrap: Callable[[nn.Module, Path], None], tmp_path: Path
) -> None:
    """It agrees with what `compile` does layer by layer, and leaves hooks and checkpoints where they were."""
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs()
    wrap(model, tmp_path)
    before = [dict(vars(part)) for part in model.get_decoder().modules()]
    with no_warning():
        report = opskip.explain(model, inputs, SPEC)
    assert report.skipped == ("0.ffn", "1.attention", "1.ffn")
    assert report.num_layers == 2
    for part, each in zip(model.get_decoder().modules(), before, strict=True):
        assert vars(part) == each


def test_explain_says_that_it_can_not_capture_off_loaded_layers(tmp_path: Path) -> None:
    family = FAMILIES["llava"]
    model = family.build(2)
    cpu_offload(model, tmp_path)
    with no_warning():
        report = opskip.explain(model, family.inputs(), SPEC)
    assert not report.skipped
    assert report.refusal is not None
    assert report.refusal.why is Why.PART
    assert "compile goes layer by layer" in report.reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU beside the CPU")
def test_two_devices() -> None:
    """The first layer on the GPU, the second on the CPU: mask, row index and stream are where the layer is."""
    family = FAMILIES["llava"]
    model, inputs = family.build(2), family.inputs(UNEVEN)
    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = model(**inputs).logits
    layers = model.get_decoder().layers
    hooks.add_hook_to_module(layers[0].to("cuda"), hooks.AlignDevicesHook(execution_device="cuda"))
    hooks.add_hook_to_module(layers[1], hooks.AlignDevicesHook(execution_device="cpu"))
    hooks.add_hook_to_module(model.get_decoder().norm, hooks.AlignDevicesHook(execution_device="cpu"))
    opskip.compile(model, SPEC, options=EAGER)
    assert_skips(model, inputs, want, SKIPPED)


@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_activation_checkpointing(name: str, regional: bool) -> None:
    """Compiled code runs inside of the checkpoints: logits and gradients are the oracle's. Eval mode is one graph."""
    family = FAMILIES[name]
    model, inputs = family.build(2), {**family.inputs(UNEVEN), "use_cache": False}
    model.train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        with torch.enable_grad():
            logits = model(**inputs).logits
            logits[:, -3:].float().square().mean().backward()
        decoder = model.get_decoder()
        return [logits.detach(), *(p.grad.clone() for p in decoder.parameters() if p.grad is not None)]

    with opskip.oracle(model, opskip.Schedule.from_spec(SPEC), visual_mask(inputs)):
        want = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    opskip.compile(model, SPEC, regional=regional, options=EAGER)
    with no_warning():
        got = gradients()
    assert len(got) == len(want) > 2
    for mine, theirs in zip(got, want, strict=True):
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max().clamp_min(1e-6)
    assert {report.skipped for report in opskip.reports() if report.rewritten} == SKIPPED
    model.eval()
    whole = set() if regional else {("0.ffn", "1.attention", "1.ffn")}
    assert_skips(model, inputs, want[0], SKIPPED | whole)
