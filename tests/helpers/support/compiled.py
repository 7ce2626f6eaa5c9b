"""Column "ways to compile": who calls the compiler, on what, with which switches, in which mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.models.oracle import decoder_layers
from tests.helpers.families import ONE_IMAGE, UNEVEN, visual_mask
from tests.helpers.support.basic import bare, forward
from tests.helpers.support.forms import Member, form
from tests.helpers.support.numerics import losing
from tests.helpers.support.outcome import (
    ABSENT,
    Call,
    Install,
    Outcome,
    in_place,
    measure,
)


def run(family: Member, install: Install, call: Callable[[dict[str, Tensor]], Call] = forward) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)
    return measure(family.build(), call(inputs), visual_mask(inputs), install=install)


def options(spec: str) -> dict[str, Any]:
    return {"schedule": spec, "lower": "eager"}


def layers_of(model: nn.Module) -> list[nn.Module]:
    return list(decoder_layers(model))


@form("ways to compile", "model.compile")
def compile_method(family: Member) -> Outcome:
    def install(model: nn.Module, spec: str) -> nn.Module:
        model.compile(backend="opskip", options=options(spec))
        return model

    return run(family, install)


@form("ways to compile", "model.forward = torch.compile(model.forward)")
def compiled_forward(family: Member) -> Outcome:
    def install(model: nn.Module, spec: str) -> Any:
        return torch.compile(model.forward, backend="opskip", options=options(spec))

    return run(family, install)


@form("ways to compile", "the decoder alone, by torch.compile")
def decoder_alone(family: Member) -> Outcome:
    """Nothing in the decoder's graph tells which rows are visual, unless its layers add image features."""

    def install(model: nn.Module, spec: str) -> nn.Module:
        whole = copy.deepcopy(model)
        whole.get_decoder().compile(backend="opskip", options=options(spec))
        return whole

    return run(family, install)


@form("ways to compile", "the decoder alone, rows named by mark_visual")
def decoder_alone_marked(family: Member) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)
    mask = visual_mask(inputs)

    def name_rows(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return args, {**named, "inputs_embeds": opskip.mark_visual(named["inputs_embeds"], mask)}

    def install(model: nn.Module, spec: str) -> nn.Module:
        model = copy.deepcopy(model)
        decoder = model.get_decoder()
        decoder.forward = torch.compile(decoder.forward, backend="opskip", options=options(spec))
        decoder.register_forward_pre_hook(name_rows, with_kwargs=True)
        return model

    return measure(family.build(), forward(inputs), mask, install=install)


@form("ways to compile", "every layer alone, by layer.compile")
def layer_by_layer(family: Member) -> Outcome:
    def install(model: nn.Module, spec: str) -> nn.Module:
        model = copy.deepcopy(model)
        for layer in layers_of(model):
            layer.compile(backend="opskip", options=options(spec))
        return model

    return run(family, install)


@form("ways to compile", "opskip.compile, regional=True")
def regional(family: Member) -> Outcome:
    return regions(family)


@form("ways to compile", "opskip.compile, regional=True, with gradient checkpointing")
def regional_with_checkpointing(family: Member) -> Outcome:
    inputs, model = family.inputs(UNEVEN), family.build()
    model.train()
    model.gradient_checkpointing_enable()
    return measure(model, losing(model, inputs), visual_mask(inputs), install=keywords(regional=True))


def regions(family: Member) -> Outcome:
    try:
        return run(family, keywords(regional=True))
    except opskip.OptionError as error:
        return Outcome(ABSENT, str(error))


@form("ways to compile", "every layer a nested_compile_region")
def nested_regions(family: Member) -> Outcome:
    def install(model: nn.Module, spec: str) -> nn.Module:
        model = copy.deepcopy(model)
        for layer in layers_of(model):
            layer.forward = region_of(layer.forward)
        return in_place(model, spec)

    return run(family, install)


def region_of(forward: Callable[..., Any]) -> Callable[..., Any]:
    @torch.compiler.nested_compile_region
    def region(*args: Any, **named: Any) -> Any:
        return forward(*args, **named)

    return region


@form("ways to compile", "fullgraph=True")
def fullgraph(family: Member) -> Outcome:
    def install(model: nn.Module, spec: str) -> nn.Module:
        return opskip.compile(model, spec, options={"lower": "eager"}, fullgraph=True)

    return where_dense_works(family, install, lambda model: model.get_decoder())


@form("ways to compile", "fullgraph=True, torch.compile of the whole model")
def fullgraph_bare(family: Member) -> Outcome:
    def install(model: nn.Module, spec: str) -> Any:
        return torch.compile(model, backend="opskip", options=options(spec), fullgraph=True)

    return where_dense_works(family, install, lambda model: model)


def where_dense_works(family: Member, install: Install, part: Callable[[nn.Module], nn.Module]) -> Outcome:
    """``fullgraph`` has to work where plain ``torch.compile`` of the same module can do it."""
    model, inputs = family.build(), family.inputs(ONE_IMAGE)
    part(model).compile(backend="eager", fullgraph=True)
    failed = ""
    try:
        model(**inputs)
    except Exception as error:  # of many kinds
        failed = str(error).strip().splitlines()[0]
    part(model)._compiled_call_impl = None
    try:
        return measure(model, forward(inputs), visual_mask(inputs), install=install)
    except AssertionError:
        raise
    except Exception:
        if not failed:
            raise
        return Outcome(ABSENT, f"the dense model can't do it either: {failed}")


@form("ways to compile", "dynamic=True")
def dynamic(family: Member) -> Outcome:
    return run(family, keywords(dynamic=True))


@form("ways to compile", "dynamic=False")
def static(family: Member) -> Outcome:
    return run(family, keywords(dynamic=False))


@form("ways to compile", 'mode="reduce-overhead"')
def reduce_overhead(family: Member) -> Outcome:
    return run(family, keywords(mode="reduce-overhead"))


@form("ways to compile", "lowered by Inductor", slow=True)
def inductor(family: Member) -> Outcome:
    return run(family, opskip.compile)


@form("ways to compile", "lowered by Inductor, torch.compile of the whole model", slow=True)
def inductor_bare(family: Member) -> Outcome:
    def install(model: nn.Module, spec: str) -> Any:
        return torch.compile(model, backend="opskip", options={"schedule": spec})

    return run(family, install)


@form("ways to compile", 'lowered by Inductor, mode="reduce-overhead"', slow=True)
def inductor_reduce_overhead(family: Member) -> Outcome:
    def install(model: nn.Module, spec: str) -> nn.Module:
        return opskip.compile(model, spec, mode="reduce-overhead")

    return run(family, install)


def keywords(**given: Any) -> Install:
    """`opskip.compile` with these keywords of ``torch.compile``."""

    def install(model: nn.Module, spec: str) -> nn.Module:
        return opskip.compile(model, spec, options={"lower": "eager"}, **given)

    return install


@form("ways to compile", "torch.inference_mode")
def inference_mode(family: Member) -> Outcome:
    return run(family, in_place, within(torch.inference_mode))


@form("ways to compile", "torch.inference_mode, torch.compile of the whole model")
def inference_mode_bare(family: Member) -> Outcome:
    return run(family, bare, within(torch.inference_mode))


@form("ways to compile", "gradient mode on")
def gradient_mode(family: Member) -> Outcome:
    return run(family, in_place, within(torch.enable_grad))


@form("ways to compile", 'torch.compiler.set_stance("force_eager")')
def force_eager(family: Member) -> Outcome:
    """After a compiled call, one that has to run dense; then a compiled one again."""
    inputs = family.inputs(ONE_IMAGE)
    model = family.build()
    dense = forward(inputs)(model)

    def call(model: Any) -> Sequence[Tensor]:
        model(**inputs)
        with torch.compiler.set_stance("force_eager"):
            eager = model(**inputs).logits
        if "_opskip_compiled" in vars(model):
            assert torch.allclose(eager, dense[0], atol=1e-5), "force_eager is dense"
        return forward(inputs)(model)

    return measure(model, call, visual_mask(inputs))


def within(context: Callable[[], Any]) -> Callable[[dict[str, Tensor]], Call]:
    def make(inputs: dict[str, Tensor]) -> Call:
        def call(model: Any) -> Sequence[Tensor]:
            with context():
                return [tensor.detach().clone() for tensor in forward(inputs)(model)]

        return call

    return make


@form("ways to compile", "training mode without dropout")
def training_mode(family: Member) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)
    return measure(family.build().train(), forward(inputs), visual_mask(inputs))


@form("ways to compile", "training mode with dropout in the attention")
def training_with_dropout(family: Member) -> Outcome:
    """The same seed before every call: what draws random numbers runs in full and in order."""
    inputs, model = family.inputs(ONE_IMAGE), family.build()
    dropped = [m for layer in layers_of(model) for m in layer.modules() if hasattr(m, "attention_dropout")]
    if not dropped:
        return Outcome(ABSENT, "its attention has no dropout")
    for module in dropped:
        module.attention_dropout = 0.3
    for layer in layers_of(model):
        layer.train()

    def call(model: Any) -> Sequence[Tensor]:
        torch.manual_seed(0)
        return forward(inputs)(model)

    return measure(model, call, visual_mask(inputs))


@form("ways to compile", "training mode with gradient checkpointing")
def gradient_checkpointing(family: Member) -> Outcome:
    inputs, model = family.inputs(UNEVEN), family.build()
    model.train()
    model.gradient_checkpointing_enable()
    return measure(model, losing(model, inputs), visual_mask(inputs))


@form("ways to compile", "hooks on every layer")
def hooks(family: Member) -> Outcome:
    """A hook before a layer and one behind it, both of which change the hidden state."""
    inputs, model = family.inputs(ONE_IMAGE), family.build()
    for layer in layers_of(model):
        layer.register_forward_pre_hook(before_layer, with_kwargs=True)
        layer.register_forward_hook(after_layer)
    return measure(model, forward(inputs), visual_mask(inputs))


def before_layer(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    return (args[0] * 1.01, *args[1:]), named


def after_layer(module: nn.Module, args: object, output: Any) -> Any:
    return (output[0] + 0.01, *output[1:]) if isinstance(output, tuple) else output + 0.01


class LowRank(nn.Module):
    """A linear layer with a low-rank update beside it."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base, self.scale = base, 0.5
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        return result + self.up(self.down(self.dropout(x.to(self.down.weight.dtype)))) * self.scale


@form("ways to compile", "low-rank adapters on every linear layer")
def adapters(family: Member) -> Outcome:
    inputs, model = family.inputs(ONE_IMAGE), family.build()
    torch.manual_seed(1)
    for layer in layers_of(model):
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear and not isinstance(module, LowRank):
                    setattr(module, name, LowRank(child))
    return measure(model.eval(), forward(inputs), visual_mask(inputs))
