"""Stand-ins for FlashAttention packages on a CPU: operators of their names and arguments, led into transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import modeling_flash_attention_utils as utils

Parts = tuple[Tensor, Tensor, Tensor, Tensor]


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, left: int) -> Tensor:
    """The last query reads the last key, and with ``left`` so many keys before its own."""
    own = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    keys = torch.arange(k.shape[1])
    mask = (keys <= own) if causal else torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    if left >= 0:
        mask = mask & (keys >= own - left)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).contiguous()


def _parts(q: Tensor, out: Tensor) -> Parts:
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    return out, lse, q.new_empty(0), q.new_empty(2, dtype=torch.int64)


# As FlashAttention 2 has it, ``flash_attn/flash_attn_interface.py`` of version 2.8.
@torch.library.custom_op("flash_attn::_flash_attn_forward", mutates_args=())
def second(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> Parts:
    return _parts(q, _attend(q, k, v, softmax_scale, causal, window_size_left))


@second.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Parts:
    return _parts(q, torch.empty_like(q))


# The arguments of FlashAttention 3 that count here, ``hopper/flash_attn_interface.py``; in a library of the hub.
@torch.library.custom_op("opskip_tests_hub_flash3::_flash_attn_forward", mutates_args=())
def third(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_new: Tensor | None = None,
    page_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> Parts:
    return _parts(q, _attend(q, k, v, softmax_scale, causal, window_size_left))


@third.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: object, **more: object) -> Parts:
    return _parts(q, torch.empty_like(q))


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """As the function that transformers calls where there is no padding."""
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    found: Parts = torch.ops.flash_attn._flash_attn_forward(
        q,
        k,
        v,
        dropout_p,
        scale,
        causal=causal,
        window_size_left=window_size[0],
        window_size_right=window_size[1],
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        return_softmax=False,
    )
    return found[0]


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """Of packed prompts, which no test has."""
    raise NotImplementedError


@contextmanager
def in_transformers(model: nn.Module) -> Iterator[None]:
    """The model's decoder attends by ``flash_attention_2``, which is the stand-in, through transformers' own code."""
    loaded = {
        "_flash_fn": flash_attn_func,
        "_flash_varlen_fn": flash_attn_varlen_func,
        "_pad_fn": utils._pad_input,
        "_unpad_fn": utils._unpad_input,
        "_process_flash_kwargs_fn": utils._lazy_define_process_function(flash_attn_varlen_func),
        "_process_with_kvcache_kwargs_fn": dict,
        "_loaded_implementation": "flash_attention_2",
    }
    config = model.get_decoder().config  # type: ignore[operator]
    usual = config._attn_implementation
    with mock.patch.multiple(utils, create=True, **loaded):
        config._attn_implementation_internal = "flash_attention_2"
        try:
            yield
        finally:
            config._attn_implementation_internal = usual
