"""Runs a step of vLLM that has visual rows through the rewritten decoder, and every other step as vLLM has it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from opskip_compile import _compat
from opskip_compile._compat import serving
from opskip_compile._compat.served_requests import RequestRows
from opskip_compile.backend.entry import opskip
from opskip_compile.backend.reports import REPORTS
from opskip_compile.errors import OpSkipError, OptionError
from opskip_compile.integrations.vllm import LOG
from opskip_compile.integrations.vllm.counters import Counters
from opskip_compile.integrations.vllm.decoder import ServedDecoder
from opskip_compile.integrations.vllm.lift import lift
from opskip_compile.integrations.vllm.settings import Asked
from opskip_compile.integrations.vllm.step import STEPS, StepMaker
from opskip_compile.passes.levels import taken
from opskip_compile.passes.runtime import Given, Prompts, mark_visual
from opskip_compile.report.report import Report
from opskip_compile.schedule.geometry import Geometry
from opskip_compile.schedule.left_out import ROWS
from opskip_compile.schedule.rules import LayerStates

VISUAL, THROUGH = ROWS


def rewrite_decoder(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Any:
    """The backend for a decoder of vLLM: bring the graph into the known form, then do as with every other."""
    states = options["schedule"].resolve(options["num_layers"]) if options else ()
    lift(gm.graph, frozenset(i for i, state in enumerate(states) if state.attention is not None))
    gm.recompile()
    return opskip(gm, example_inputs, options=options)


class Skipper:
    """The skipping decoder of one model.

    Args:
        decoder: what is skipped in.
        asked: the schedule and options.
        config: vLLM's configuration.
    """

    def __init__(self, decoder: ServedDecoder, asked: Asked, config: Any) -> None:
        states = asked.schedule.resolve(len(decoder.layers))
        self.decoder, self.asked = decoder, asked
        self.counters = Counters(states, _geometry(config), serving.is_first_rank())
        skipping = [i for i, state in enumerate(states) if state.attention is not None]
        serving.remember_metadata({name: layer for own in decoder.attentions for name, layer in own.items()})
        left_out = [each for state in states for each in (state.attention, state.ffn) if each is not None]
        self._through_visual = any(each.rows == THROUGH for each in left_out)
        self._chooses = any(each.chooses for each in left_out)
        self._steps = StepMaker(config, dict(_whole_sets(decoder, states)))
        self._sounds = serving.audio_tokens(config)
        self._projections = [linear for i in skipping for linear in decoder.projections(i)]
        options = {"lower": "inductor", **asked.options, "schedule": asked.schedule, "num_layers": len(decoder.layers)}
        if options["lower"] == "inductor":
            options = {**_known(config.compilation_config.inductor_compile_config), **options}
        forward = serving.plain_forward(decoder.module)
        self._parameters = list(inspect.signature(forward).parameters)[1:]
        options["in_place"] = True
        self._compiled = _compiled(_naming_rows(forward), options)
        self._one_row = _compiled(_naming_rows(forward), {**options, "lower": "eager"}, dynamic=False)
        self._mask: Tensor | None = None
        self._requests: list[RequestRows] | None = None
        self.report: Report | None = None

    def note(self, ids: Tensor, mask: Tensor | None) -> None:
        """Take the visual rows of the step that comes, from where vLLM embeds them.

        Args:
            ids: of the step's tokens, ``(rows,)``.
            mask: bool ``(rows,)`` on the CPU: rows of images, videos and sounds.
        """
        self._mask = None if mask is None else mask.detach().cpu()
        if self._mask is not None and self._sounds:
            self._mask = self._mask & ~torch.isin(ids.cpu(), torch.tensor(self._sounds))

    @property
    def asks_requests(self) -> bool:
        """True if it has to be told the requests of each step."""
        return self._through_visual or self._chooses

    def note_requests(self, requests: list[RequestRows]) -> None:
        """Take the requests of the step that comes, in the order of their rows."""
        self._requests = requests

    def _told(self, counts: bool) -> tuple[dict[str, Tensor] | None, list[RequestRows]]:
        """By row set the rows of this step that are left out, bool ``(rows,)`` on the CPU, and its requests.

        None where no row is left out, or in a step that does not count.

        Raises:
            OpSkipError: vLLM has not told one of them.
        """
        mask, requests = self._mask, self._requests
        self._mask = self._requests = None
        if mask is None or not counts:
            return None, []
        if requests is None and self.asks_requests:
            raise OpSkipError("opskip: vLLM embeds rows of requests that it says nothing of")
        found: dict[str, Tensor] = {VISUAL: mask}
        if self._through_visual and requests:
            parts = [torch.arange(one.first, one.first + one.count) <= one.last_visual for one in requests]
            found[THROUGH] = torch.cat(parts) | mask
        return (found if any(bool(rows.any()) for rows in found.values()) else None), requests or []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Let the decoder skip inside of this block, if the step has rows to leave out."""
        metadata = serving.context().attn_metadata
        left_out, requests = self._told(bool(metadata))
        if not metadata:  # a run that only warms up
            yield
        elif left_out is None:
            self.counters.without()
            module = self.decoder.module
            if serving.is_cold(module) and self._steps.rows_of(metadata) == 1:
                with serving.instead_of(module, partial(serving.plain_forward(module), module)):
                    yield
            else:
                yield
        elif not isinstance(metadata, dict):
            raise OptionError("opskip: a step that vLLM cuts into parts is not known")
        else:
            for mask in left_out.values():
                self._steps.check(mask, metadata)
            prompts = _prompts(requests, left_out[VISUAL])
            with serving.instead_of(self.decoder.module, partial(self._run, left_out, metadata, prompts)):
                yield
            by_request = self._steps.by_request(left_out, metadata, [bool(rows) for rows in prompts.lengths])
            self.counters.skipped(len(mask), by_request, taken(self.asked.schedule.digest))

    def needs_warm_up(self) -> bool:
        """True in vLLM's own warm-up, as long as the skipping decoder is not compiled."""
        return self.report is None and not serving.context().attn_metadata

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Compile the skipping decoder inside of this block, and say what it skips."""
        with serving.instead_of(self.decoder.module, partial(self._run, None, {}, None)):
            yield

    def _run(
        self,
        left_out: Mapping[str, Tensor] | None,
        metadata: Mapping[str, Any],
        prompts: Prompts | None,
        *args: Any,
        **named: Any,
    ) -> Any:
        named |= dict(zip(self._parameters, args, strict=False))
        embedded = named.get("inputs_embeds")
        if embedded is None:
            raise OptionError("opskip: vLLM's decoder was called without the embedded rows")
        count, device = embedded.shape[0], embedded.device
        if left_out is None:
            left_out = dict.fromkeys(map(str, ROWS), torch.arange(count) < count // 2)
        # vLLM fills a step up to a size that it has a graph for
        left_out = {name: nn.functional.pad(rows, (0, count - len(rows))) for name, rows in left_out.items()}
        visual = left_out[VISUAL].to(device, non_blocking=True)
        STEPS.now = self._steps.make(left_out, metadata, device)
        if self._through_visual:
            Given.through = left_out[THROUGH].to(device, non_blocking=True)[None]
        if self._chooses:
            Given.prompts = prompts or Prompts.of([count], [count], left_out[VISUAL])
        try:
            with serving.by_parts(self._projections):
                if count == 1:
                    return self._one_row(self.decoder.module, visual, **named)
                if self.report is None:
                    return self._compile(visual, **named)
                return self._compiled(self.decoder.module, visual, **named)
        finally:
            STEPS.now = Given.through = Given.prompts = None

    def _compile(self, visual: Tensor, **named: Any) -> Any:
        """The first step, for any number of rows.

        Raises:
            OptionError: nothing would be skipped.
        """
        before = REPORTS.count
        _mark_rows({**named, "visual": visual})
        result = self._compiled(self.decoder.module, visual, **named)
        reports = REPORTS.since(before)
        if len(reports) != 1 or not reports[0].rewritten:
            why = reports[0].reason if reports else "no graph was captured"
            raise OptionError(f"opskip: nothing would be skipped in this model: {why}")
        (self.report,) = reports
        remaining = self.report.remaining()
        full = self.report.misses or self.report.stops or remaining
        LOG.log(logging.WARNING if full else logging.INFO, "%s", self.report)
        if remaining:
            text = ", ".join(f"{count} {name}" for name, count in sorted(remaining.items()))
            LOG.warning("opskip: skipped operators go on computing these for every row: %s", text)
        return result


def _whole_sets(decoder: ServedDecoder, states: Sequence[LayerStates]) -> Iterator[tuple[str, str]]:
    """The attention layers whose queries lose a whole row set, known before a step, and that set."""
    for state, own in zip(states, decoder.attentions, strict=True):
        if state.attention is not None and not state.attention.chooses:
            for name in own:
                yield name, state.attention.rows


def _prompts(requests: Sequence[RequestRows], visual: Tensor) -> Prompts:
    """Which of the requests have their whole prompt in the step."""
    lengths = [one.prompt if one.prompt and not one.first and one.count >= one.prompt else 0 for one in requests]
    return Prompts.of([one.count for one in requests], lengths, visual)


def _geometry(config: Any) -> Geometry | None:
    try:
        return Geometry.from_config(config.model_config.hf_config)
    except OpSkipError:  # a mixture of experts, sizes that differ from layer to layer
        return None


def _compiled(forward: Callable[..., Any], options: Mapping[str, Any], **more: Any) -> Callable[..., Any]:
    """A loaded decoder stays as it is, and vLLM's own compiled form is not guarded at all: only the inputs are."""
    guards = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    compiled: Callable[..., Any] = torch.compile(
        forward, backend=rewrite_decoder, fullgraph=True, options={**options, **guards}, **more
    )
    return compiled


def _naming_rows(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A decoder's own forward, with its visual rows named; code of its own, so that nobody else's is taken for it."""

    def run(decoder: nn.Module, visual: Tensor, **named: Any) -> Any:
        embedded = mark_visual(named.pop("inputs_embeds").unsqueeze(0), visual.unsqueeze(0)).squeeze(0)
        return forward(decoder, inputs_embeds=embedded, **named)

    return _compat.with_own_code(run)


def _known(inductor: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's options of Inductor, as far as they are plain values: its own passes belong to its own graphs."""
    return {name: value for name, value in inductor.items() if isinstance(value, bool | int | float | str)}


def _mark_rows(named: Mapping[str, Any]) -> None:
    """Let every tensor have any number of rows in the compiled graph; positions may have several axes before them."""
    for name, value in named.items():
        for tensor in _tensors(value):
            _compat.any_size(tensor, tensor.dim() - 1 if name == "positions" else 0)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif hasattr(value, "tensors"):
        yield from _tensors(value.tensors)
