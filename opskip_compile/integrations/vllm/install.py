"""Let the models that vLLM loads skip, if its configuration asks for it."""

from __future__ import annotations

from typing import Any

from torch import nn

from opskip_compile._compat import serving
from opskip_compile._compat.served_requests import RequestRows, on_rows
from opskip_compile.errors import OptionError
from opskip_compile.integrations.vllm.decoder import ServedDecoder
from opskip_compile.integrations.vllm.settings import asked
from opskip_compile.integrations.vllm.skipper import Skipper


def install() -> None:
    """From now on, models are looked at when vLLM loads them. A second call changes nothing."""
    serving.on_load(_keep_parts, _attach)


def _keep_parts(model: nn.Module, config: Any) -> None:
    """Before vLLM packs the weights: projections whose queries are going to be fewer than keys and values."""
    settings = asked(config)
    if settings is None:
        return
    decoder = ServedDecoder.of(model)
    for i, state in enumerate(settings.schedule.resolve(len(decoder.layers))):
        for linear in decoder.projections(i) if state.attention is not None else ():
            serving.keep_parts(linear)


def _attach(model: nn.Module, config: Any) -> None:
    settings = asked(config)
    if settings is None:
        return
    decoder = ServedDecoder.of(model)
    if not serving.is_compiled(decoder.module):
        raise OptionError("opskip can't skip without vLLM's compiled mode; leave compilation_config.mode as it is")
    model.__dict__["opskip"] = skipper = Skipper(decoder, settings, config)
    if skipper.asks_requests:
        on_rows(_note_requests)
    kind = type(model)
    model.__class__ = type(kind.__name__, (_Skipping, kind), {"__module__": kind.__module__})


def _note_requests(model: Any, requests: list[RequestRows]) -> None:
    skipper = getattr(model, "opskip", None)
    if skipper is not None:
        skipper.note_requests(requests)


class _Skipping:
    """What a model does beside its own."""

    opskip: Skipper

    def embed_input_ids(self, input_ids: Any, multimodal_embeddings: Any = None, *args: Any, **named: Any) -> Any:
        """Takes the visual rows of the step."""
        self.opskip.note(input_ids, named.get("is_multimodal"))
        return super().embed_input_ids(input_ids, multimodal_embeddings, *args, **named)  # type: ignore[misc]

    def forward(self, *args: Any, **named: Any) -> Any:
        """One step."""
        with self.opskip.step():
            result = super().forward(*args, **named)  # type: ignore[misc]
        if self.opskip.needs_warm_up():
            with self.opskip.warming_up():
                super().forward(*args, **named)  # type: ignore[misc]
        return result
