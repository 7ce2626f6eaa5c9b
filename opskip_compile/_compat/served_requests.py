"""The requests of a step of vLLM, from where it gathers the embeddings of their pictures: names as of vLLM 0.32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RequestRows:
    """The rows of one request in a step.

    Attributes:
        first: how many rows of it came before.
        count: how many the step has.
        prompt: how many its prompt has; None if that is not known.
        last_visual: number of the last visual row of its prompt; -1 without one.
    """

    first: int
    count: int
    prompt: int | None
    last_visual: int


def on_rows(told: Callable[[Any, list[RequestRows]], None]) -> None:
    """Call ``told(model, requests)`` before vLLM embeds the rows of a step of a model, with its requests in order.

    A second call changes nothing.
    """
    from vllm.v1.worker.gpu.mm.encoder_runner import EncoderRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if hasattr(GPUModelRunner, "_opskip_gather"):
        return
    GPUModelRunner._opskip_gather = first = GPUModelRunner._gather_mm_embeddings
    EncoderRunner._opskip_gather = second = EncoderRunner.gather_mm_embeddings

    def gather(self: Any, scheduled: Any, shift: int = 0) -> Any:
        if not shift:
            requests = [self.requests[name] for name in self.input_batch.req_ids]
            counts = [scheduled.num_scheduled_tokens[name] for name in self.input_batch.req_ids]
            told(
                self.model,
                [
                    RequestRows(r.num_computed_tokens, count, r.num_prompt_tokens, _last_visual(r.mm_features))
                    for r, count in zip(requests, counts, strict=True)
                ],
            )
        return first(self, scheduled, shift)

    def gather_second(
        self: Any, names: Any, total: int, counts: Any, starts: Any, lens: Any, computed: Any, draft_lookahead: int = 0
    ) -> Any:
        if not draft_lookahead:
            features = [self.encoder_cache.mm_features[name] for name in names]
            rows = zip(computed.tolist(), counts.tolist(), features, strict=False)
            told(self.model, [RequestRows(first, count, None, _last_visual(own)) for first, count, own in rows])
        return second(self, names, total, counts, starts, lens, computed, draft_lookahead)

    GPUModelRunner._gather_mm_embeddings = gather
    EncoderRunner.gather_mm_embeddings = gather_second


def _last_visual(features: Any) -> int:
    last = -1
    for feature in features or ():
        place, own = feature.mm_position, feature.mm_position.is_embed
        if feature.modality != "audio" and (own is None or bool(own.any())):
            last = max(last, place.offset + (place.length - 1 if own is None else int(own.nonzero().max())))
    return last
