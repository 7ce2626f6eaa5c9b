"""Columns "dtypes", "attention kernels", "gradients" and "quantised": what the numbers are and who computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import opskip_compile as opskip
from tests.helpers.families import ONE_IMAGE, UNEVEN, visual_mask
from tests.helpers.support.basic import bare, forward
from tests.helpers.support.forms import Member, form
from tests.helpers.support.outcome import ABSENT, SPEC, THROUGH, Call, Outcome, in_place, measure

LOW = torch.bfloat16


@form("dtypes", "bfloat16")
def in_bfloat16(family: Member) -> Outcome:
    return of_16_bit(family, torch.bfloat16)


@form("dtypes", "float16")
def in_float16(family: Member) -> Outcome:
    return of_16_bit(family, torch.float16)


def of_16_bit(family: Member, dtype: torch.dtype) -> Outcome:
    """Four prompts together: the rounding of a single small one is a matter of luck."""
    prompts = [family.inputs(ONE_IMAGE, seed) for seed in range(4)]

    def call(prompts: Sequence[dict[str, Tensor]]) -> Call:
        return lambda model: [tensor for inputs in prompts for tensor in forward(inputs)(model)]

    low = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()} for inputs in prompts]
    exact = (family.build(), call(prompts))
    return measure(family.build(dtype=dtype), call(low), visual_mask(prompts[0]), exact=exact)


@form("dtypes", "autocast around the call")
def called_in_autocast(family: Member) -> Outcome:
    return in_autocast(family, in_place)


@form("dtypes", "autocast around compile and call")
def compiled_in_autocast(family: Member) -> Outcome:
    def install(model: nn.Module, spec: str) -> Any:
        with torch.autocast("cpu", LOW):
            return in_place(model, spec)

    return in_autocast(family, install)


@form("dtypes", "autocast, torch.compile of the whole model")
def bare_in_autocast(family: Member) -> Outcome:
    return in_autocast(family, bare)


def in_autocast(family: Member, install: Any) -> Outcome:
    inputs = family.inputs(ONE_IMAGE)
    plain = forward(inputs)

    def call(model: Any) -> Sequence[Tensor]:
        with torch.autocast("cpu", LOW):
            return plain(model)

    return measure(family.build(), call, visual_mask(inputs), install=install, exact=(family.build(), plain))


@form("dtypes", "autocast and float32 take turns")
def autocast_takes_turns(family: Member) -> Outcome:
    """Code that was compiled for one of them is not taken for the other."""
    inputs = family.inputs(ONE_IMAGE)
    plain = forward(inputs)

    def call(model: Any) -> Sequence[Tensor]:
        first = plain(model)
        with torch.autocast("cpu", LOW):
            model(**inputs)
        return [*first, *plain(model)]

    return measure(family.build(), call, visual_mask(inputs))


@form("attention kernels", "eager attention")
def eager_attention(family: Member) -> Outcome:
    return with_attention(family, "eager")


@form("attention kernels", "eager attention, torch.compile of the whole model")
def eager_attention_bare(family: Member) -> Outcome:
    return with_attention(family, "eager", bare)


@form("attention kernels", "flex_attention")
def flex_attention(family: Member) -> Outcome:
    return with_attention(family, "flex_attention")


@torch.library.custom_op("opskip_tests::attention", mutates_args=())
def opaque_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """As FlashAttention is called: ``(batch, rows, heads, width)``; the compiler can't look into it."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    causal = mask is None and query.shape[2] > 1
    found = nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scale)
    return found.transpose(1, 2).contiguous()


@opaque_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return query.new_empty((*query.shape[:3], value.shape[3]))


def calls_an_opaque_kernel(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    scale = more.get("scaling") or query.shape[-1] ** -0.5
    return opaque_attention(query, key, value, attention_mask, scale), None


def written_by_a_user(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Plain torch code, with scores in float32 and einsum."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = more.get("scaling") or query.shape[-1] ** -0.5
    scores = torch.einsum("bhqd,bhkd->bhqk", query.float(), key.float()) * scale
    if attention_mask is None:
        last = torch.arange(query.shape[2]) + key.shape[2] - query.shape[2]
        attention_mask = torch.arange(key.shape[2]) <= last[:, None]
    scores = scores.masked_fill(~attention_mask, torch.finfo(torch.float32).min)
    weights = scores.softmax(-1).to(value.dtype)
    return torch.einsum("bhqk,bhkd->bqhd", weights, value), None


AttentionInterface.register("opskip_tests_opaque", calls_an_opaque_kernel)
AttentionMaskInterface.register("opskip_tests_opaque", sdpa_mask)
AttentionInterface.register("opskip_tests_written", written_by_a_user)
AttentionMaskInterface.register("opskip_tests_written", sdpa_mask)


@form("attention kernels", "a kernel behind a custom op, as FlashAttention")
def opaque_kernel(family: Member) -> Outcome:
    return with_attention(family, "opskip_tests_opaque")


@form("attention kernels", "an attention function of the user's own")
def own_attention(family: Member) -> Outcome:
    return with_attention(family, "opskip_tests_written")


def with_attention(family: Member, name: str, install: Any = in_place) -> Outcome:
    """The decoder with another attention function; the vision tower keeps its own."""
    inputs, model = family.inputs(ONE_IMAGE), family.build()
    try:
        model.set_attn_implementation({"text_config": name})
        model(**inputs)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        return Outcome(ABSENT, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    if getattr(model.config.get_text_config(), "_attn_implementation", name) != name:
        return Outcome(ABSENT, f"the decoder does not take the attention function {name!r}")
    return measure(model, forward(inputs), visual_mask(inputs), install=install)


@form("gradients", "backward, batch of one")
def backward(family: Member) -> Outcome:
    return gradients(family, ONE_IMAGE)


@form("gradients", "backward, batch of different counts")
def backward_of_a_batch(family: Member) -> Outcome:
    return gradients(family, UNEVEN)


@form("gradients", "backward, rows through_visual")
def backward_through(family: Member) -> Outcome:
    return gradients(family, UNEVEN, THROUGH)


@form("gradients", "backward, torch.compile of the whole model")
def backward_bare(family: Member) -> Outcome:
    return gradients(family, ONE_IMAGE, install=bare)


@form("gradients", "backward, lowered by Inductor", slow=True)
def backward_inductor(family: Member) -> Outcome:
    return gradients(family, UNEVEN, install=opskip.compile)


def gradients(family: Member, layout: Any, spec: str = SPEC, install: Any = in_place) -> Outcome:
    inputs, model = family.inputs(layout), family.build()
    return measure(model, losing(model, inputs), visual_mask(inputs), spec, install)


def losing(model: nn.Module, inputs: dict[str, Tensor]) -> Call:
    """A call for `measure`: logits of shown rows, the gradient of the embedded input, and all gradients as one."""
    shown = inputs["attention_mask"].bool()

    def call(compiled: Any) -> Sequence[Tensor]:
        model.zero_grad(set_to_none=True)
        with torch.enable_grad(), embedded_input(model) as hidden:
            logits = compiled(**inputs, use_cache=False).logits
            (logits.float()[shown] ** 2).mean().backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert any("layers.3" in name for name in found)
        assert hidden[0].grad is not None
        return [logits.detach()[shown], hidden[0].grad, torch.cat([found[name].flatten() for name in sorted(found)])]

    return call


@contextmanager
def embedded_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the decoder gets as ``inputs_embeds`` in the block, with its gradient kept; empty if it gets token ids."""
    seen: list[Tensor] = []

    def before(module: nn.Module, args: object, named: dict[str, Any]) -> None:
        if isinstance(named.get("inputs_embeds"), Tensor):
            named["inputs_embeds"].retain_grad()
            seen.append(named["inputs_embeds"])

    handle = model.get_decoder().register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@form("quantised", "torchao, int8 weights")
def int8_weights(family: Member) -> Outcome:
    return by_torchao(family, "Int8WeightOnlyConfig")


@form("quantised", "torchao, int8 weights, torch.compile of the whole model")
def int8_weights_bare(family: Member) -> Outcome:
    return by_torchao(family, "Int8WeightOnlyConfig", install=bare)


@form("quantised", "torchao, int8 weights and activations by row")
def int8_by_row(family: Member) -> Outcome:
    return by_torchao(family, "Int8DynamicActivationInt8WeightConfig")


@form("quantised", "torchao, int8 weights and activations by tensor")
def int8_by_tensor(family: Member) -> Outcome:
    from_torchao = pytest.importorskip("torchao.quantization")
    granularity = [from_torchao.PerTensor(), from_torchao.PerRow()]
    return by_torchao(family, "Int8DynamicActivationInt8WeightConfig", granularity=granularity)


def by_torchao(family: Member, config: str, install: Any = in_place, **more: Any) -> Outcome:
    from_torchao = pytest.importorskip("torchao.quantization")
    inputs, model = family.inputs(ONE_IMAGE), family.build()
    try:
        from_torchao.quantize_(model.get_decoder(), getattr(from_torchao, config)(**more))
        model(**inputs)
    except (ValueError, AssertionError, NotImplementedError, RuntimeError) as error:
        return Outcome(ABSENT, f"torchao: {str(error).splitlines()[0]}")
    return measure(model, forward(inputs), visual_mask(inputs), install=install)


@form("quantised", "torch.ao.quantization.quantize_dynamic")
def packed_int8(family: Member) -> Outcome:
    inputs, model = family.inputs(ONE_IMAGE), family.build()
    torch.ao.quantization.quantize_dynamic(model.get_decoder(), {nn.Linear}, dtype=torch.qint8, inplace=True)
    return measure(model, forward(inputs), visual_mask(inputs))
