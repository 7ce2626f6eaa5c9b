"""Models in which it is known which operators' visual updates the answer can't observe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import opskip_compile as opskip
from opskip_compile.calibration.divergence_meter import DivergenceMeter
from opskip_compile.calibration.journal import Journal
from opskip_compile.calibration.operator_sets import OperatorId, Skipped, Step, all_operators
from opskip_compile.calibration.samples import InMemorySamples
from opskip_compile.models.critical import AttentionWatch
from opskip_compile.models.oracle import decoder_layers
from tests.helpers.families import FAMILIES, IMAGE, UNEVEN

LAYERS = 5


def samples(family: str, count: int = 3, layout: Sequence[Sequence[int]] = UNEVEN) -> list[dict[str, Tensor]]:
    """Batches of prompts with images."""
    return [dict(FAMILIES[family].inputs(layout, seed=seed)) for seed in range(count)]


def meter(
    model: nn.Module, prompts: Sequence[Mapping[str, Any]], answer_tokens: int = 3, **more: Any
) -> DivergenceMeter:
    """A meter on samples that were checked and answered."""
    in_memory = InMemorySamples(model, prompts, "visual", answer_tokens)
    in_memory.check()
    journal = Journal(None, {})
    in_memory.answer(journal)
    return DivergenceMeter(model, in_memory, journal, **more)


def skipped_by(schedule: opskip.Schedule, num_layers: int) -> Skipped:
    """The operators that a schedule skips, without the steps between."""
    states = schedule.resolve(num_layers)
    rows = {op: getattr(states[op.layer], op.kind) for op in all_operators(num_layers)}
    return frozenset(Step(*op, left_out.keep) for op, left_out in rows.items() if left_out is not None)


class PromptWatch(AttentionWatch):
    """Asks no row from ``length`` on, where answers are put behind the prompts: a prefill has none."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def asked_of(self, visual: list[bool], reads_itself: list[bool]) -> list[int]:
        return super().asked_of(visual[: self.length], reads_itself[: self.length])


def deaf_after(k: int, family: str = "llava") -> tuple[nn.Module, frozenset[OperatorId]]:
    """A model whose attentions from layer ``k`` on add nothing, so that no text row reads an image any more; its late
    FFNs do much to the visual rows. Returns it with the operators whose visual updates are unread."""
    model = FAMILIES[family].build(LAYERS)
    with torch.no_grad():
        for i, layer in enumerate(decoder_layers(model)):
            attention, ffn = layer.self_attn, layer.mlp
            if i >= k:
                attention.o_proj.weight.zero_()
            if i >= k - 1:
                ffn.down_proj.weight.mul_(20)
    return model, frozenset(op for op in all_operators(LAYERS) if op.layer >= k - 1)


@contextmanager
def text_looks_away(model: nn.Module, k: int) -> Iterator[frozenset[OperatorId]]:
    """From layer ``k`` on text rows do not attend to visual ones, though these go on changing."""
    model.set_attn_implementation("eager")  # type: ignore[operator]
    now: list[Tensor] = []
    handles = [
        model.register_forward_pre_hook(
            lambda module, args, named: now.__setitem__(slice(None), [named["input_ids"] == IMAGE]), with_kwargs=True
        )
    ]

    def mask_out(module: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        visual = now[0]
        blocked = ~visual[:, None, :, None] & visual[:, None, None, :]
        mask = named["attention_mask"].masked_fill(blocked, torch.finfo(torch.float32).min)
        return args, {**named, "attention_mask": mask}

    handles += [
        layer.self_attn.register_forward_pre_hook(mask_out, with_kwargs=True) for layer in decoder_layers(model)[k:]
    ]
    try:
        yield frozenset(op for op in all_operators(len(decoder_layers(model))) if op.layer >= k - 1)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def nothing_on_visual_rows(model: nn.Module, op: OperatorId) -> Iterator[None]:
    """The operator's update is zero on visual rows."""
    layer = decoder_layers(model)[op.layer]
    module = layer.self_attn if op.kind == "attention" else layer.mlp
    now: list[Tensor] = []
    handles = [
        model.register_forward_pre_hook(
            lambda m, args, named: now.__setitem__(slice(None), [named["input_ids"] == IMAGE]), with_kwargs=True
        )
    ]

    def drop(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        kept = first * ~now[0][..., None]
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    handles.append(module.register_forward_hook(drop))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
