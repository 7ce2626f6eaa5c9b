"""Any set of skipped operators on one batch, without computing again what comes before the first difference.

The dense forward is recorded once: how the decoder is called, what each layer returns, and what the model makes of it.
To try another set, the decoder runs again with its layers before the first difference replaced by what was recorded;
its own code between the layers runs as it is. What skipping means is the oracle's definition, and nothing else; where
operators keep a share of their rows, the scores that say which are recorded with the layers.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opskip_compile.attachment.decoder import decoder_of, modules_around
from opskip_compile.calibration.batches import Batch, left_out
from opskip_compile.calibration.operator_sets import NOTHING, Skipped, as_schedule, first_difference
from opskip_compile.calibration.row_scores import RowScores
from opskip_compile.errors import OpSkipError
from opskip_compile.models.oracle import decoder_layers, oracle
from opskip_compile.schedule.left_out import Rows

LOG = logging.getLogger(__name__)
Hooks = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class AnswerOutputs:
    """What the answer rows see.

    Attributes:
        logits: ``(answer rows, vocabulary)``, float32 or wider.
        hidden: ``(answer rows, width)``, float32 or wider: the residual stream behind the last layer.
    """

    logits: Tensor
    hidden: Tensor


class _RowsMissing(Exception):
    """A decoder went on with only the rows that the head was asked for."""


class Replay:
    """One batch on one model.

    Args:
        model: a transformers model in evaluation mode, dense.
        batch: on the model's device.
        rows: the row set that a skipped operator leaves out.
        reuse: replace layers by what was recorded. `reproduces` says whether the model allows it.
        watch: what scores the rows where sets hold operators that keep a share of them.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        rows: Rows = "visual",
        reuse: bool = True,
        watch: type[RowScores] = RowScores,
    ) -> None:
        self.model, self.batch, self.rows, self.reuse = model, batch, rows, reuse
        self.layers = decoder_layers(model)
        self.left_out = left_out(batch.visual, rows)
        self._decoder = decoder_of(model)
        # The part of the model that the head is put on: with it replaced, no vision tower runs again.
        self._inner = self._decoder
        self._call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._inner_output: Any = None
        self.layer_runs = 0  # layers that were computed, times the elements of the batch
        self._base: Skipped = NOTHING
        self._outputs: list[Any] = []
        self._watch = watch(batch.visual, batch.prompt)
        self._scores: list[Tensor] = []  # after each layer of the base
        self._inputs = dict(batch.inputs)
        self._keep = self._inputs["input_ids"].shape[1]
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            self._keep = batch.keep
            self._inputs["logits_to_keep"] = batch.keep
        self._inputs["use_cache"] = False
        try:
            self.dense = self._record()
        except _RowsMissing:
            del self._inputs["logits_to_keep"]
            self._keep = self._inputs["input_ids"].shape[1]
            self.dense = self._record()

    @property
    def bytes(self) -> int:
        """Memory that the recorded values take."""
        held = [*_tensors([self._outputs, self._scores]), *_tensors(self._call), *_tensors(self._inputs)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())

    def outcome(self, skipped: Skipped) -> AnswerOutputs:
        """The answer rows with these operators skipped."""
        start = first_difference(skipped, self._base, len(self.layers)) if self.reuse else 0
        return self.run(start, lambda: self._skipping(skipped, start))

    def move(self, skipped: Skipped) -> None:
        """Record this set's layers: the sets that come next differ little from it."""
        start = first_difference(skipped, self._base, len(self.layers))
        if not self.reuse or start == len(self.layers):
            return
        recorded: list[Any] = []
        with self._recorded(recorded):
            self.run(start, lambda: self._skipping(skipped, start, scored=True))
        self._base, self._outputs = skipped, [*self._outputs[:start], *recorded[start:]]
        self._keep_scores()

    def reproduces(self) -> bool:
        """True if starting in the middle gives exactly the dense result: code of a model may depend on more than what
        its layers return."""
        if self._decoder is None or self._inner_output is None:
            return False
        try:
            again = self.run(max(1, len(self.layers) // 2), nullcontext)
        except Exception as error:  # what a layer of some model left for a later one is missing
            LOG.info("layers can't be left out one by one in %s: %r", type(self.model).__name__, error)
            return False
        return torch.equal(again.logits, self.dense.logits) and torch.equal(again.hidden, self.dense.hidden)

    def run(self, start: int, hooks: Hooks) -> AnswerOutputs:
        """The answer rows of a forward under ``hooks``, from layer ``start`` on."""
        with torch.no_grad():
            logits, hidden = self.forward(start, hooks)
        return AnswerOutputs(widened(logits), widened(hidden))

    def forward(self, start: int, hooks: Hooks) -> tuple[Tensor, Tensor]:
        """As `run`, of the model's dtype and with gradients where they are recorded."""
        last: list[Tensor] = []
        self.layer_runs += (len(self.layers) - start) * len(self.batch.names)
        handle = self.layers[-1].register_forward_hook(lambda module, args, output: last.append(first_of(output)))
        try:
            if not self.reuse or self._decoder is None or self._inner_output is None:
                with hooks():
                    output = self.model(**self._inputs)
            else:
                with hooks(), _replaced(self._stubs(start)):
                    state = first_of(self._decoder(*self._call[0], **self._call[1]))
                with _replaced({self._inner: lambda *args, **named: with_first(self._inner_output, state)}):
                    output = self.model(**self._inputs)
        finally:
            handle.remove()
        if not last:  # no layer ran: the whole set was recorded
            last.append(first_of(self._outputs[-1]))
        here = self.batch.answers
        hidden = last[-1]
        if hidden.shape[1] != here.shape[1]:
            raise _RowsMissing
        return output.logits[here[:, -self._keep :]], hidden[here]

    def decoder_call(self) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        """The decoder, and the arguments that the model calls it with.

        Raises:
            OpSkipError: the model has no decoder of its own that is called with ``inputs_embeds``.
        """
        args, named = self._call
        if self._decoder is None or not isinstance(named.get("inputs_embeds"), Tensor):
            raise OpSkipError(f"model: {type(self.model).__name__} has no decoder that is called with inputs_embeds")
        return self._decoder, args, dict(named)

    def _skipping(self, skipped: Skipped, start: int = 0, *, scored: bool = False) -> AbstractContextManager[Any]:
        """Hooks that skip from layer ``start`` on; with ``scored`` they see the attentions whoever asks for them."""
        watch = self._watch if scored or any(step.keep for step in skipped) else None
        if not skipped and watch is None:
            return nullcontext()
        if watch is not None:
            watch.recall(self._scores[:start])
        return oracle(self.model, as_schedule(skipped, self.rows), self.batch.visual, watch=watch)

    def _keep_scores(self) -> None:
        self._scores = self._watch.after

    def _record(self) -> AnswerOutputs:
        outputs: list[Any] = []
        handles = []
        if self._decoder is not None:

            def called(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
                self._call = (args, dict(named))

            def returned(module: nn.Module, args: Any, output: Any) -> None:
                rest = without_first(output)  # the outermost returns last
                if rest is not None:
                    self._inner, self._inner_output = module, rest

            handles.append(self._decoder.register_forward_pre_hook(called, with_kwargs=True))
            for module in (*modules_around(self.model, self._decoder)[1:], self._decoder):
                handles.append(module.register_forward_hook(returned))
        reuse, self.reuse = self.reuse, False
        try:
            with self._recorded(outputs):
                dense = self.run(0, lambda: self._skipping(NOTHING, scored=True))
        finally:
            self.reuse = reuse
            for handle in handles:
                handle.remove()
        self._keep_scores()
        self._outputs = outputs if reuse else outputs[-1:]
        return dense

    @contextmanager
    def _recorded(self, outputs: list[Any]) -> Iterator[None]:
        handles = [
            layer.register_forward_hook(lambda module, args, output: outputs.append(output)) for layer in self.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _stubs(self, start: int) -> dict[nn.Module | None, Callable[..., Any]]:
        """Layers before ``start``: the last of them returns what was recorded, for the others nothing is computed."""
        stubs: dict[nn.Module | None, Callable[..., Any]] = {}
        for i, recorded in enumerate(self._outputs[:start]):
            stubs[self.layers[i]] = _passing(recorded) if i < start - 1 else _recalling(recorded)
        return stubs


def _passing(recorded: Any) -> Callable[..., Any]:
    """A layer that does nothing, in the form of what it returned."""
    return lambda *args, **named: with_first(recorded, args[0] if args else named["hidden_states"])


def _recalling(recorded: Any) -> Callable[..., Any]:
    """A layer that returns what it returned; a copy, since code between the layers may write into it."""
    return lambda *args, **named: with_first(recorded, first_of(recorded).clone())


@contextmanager
def _replaced(forwards: Mapping[nn.Module | None, Callable[..., Any]]) -> Iterator[None]:
    """Give modules other forwards until the block ends."""
    before = {module: vars(module).get("forward") for module in forwards if module is not None}
    try:
        for module, forward in forwards.items():
            if module is not None:
                module.forward = forward
        yield
    finally:
        for module, forward_before in before.items():
            if forward_before is None:
                del module.forward
            else:
                module.forward = forward_before


def widened(value: Tensor) -> Tensor:
    """In float32 at least."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def first_of(output: Any) -> Tensor:
    """The hidden state that a layer or a decoder returns, alone or in front of other values."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


def with_first(output: Any, hidden: Tensor) -> Any:
    """The same output with another hidden state."""
    if isinstance(output, Tensor):
        return hidden
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    changed = copy.copy(output)  # an output class of transformers, whose first field is the hidden state
    changed[next(iter(changed))] = hidden
    return changed


def without_first(output: Any) -> Any:
    """The same output without its hidden state, which may be large; None where it can't be put back."""
    if isinstance(output, Tensor | tuple):
        return with_first(output, first_of(output)[..., :0])
    try:
        return with_first(output, first_of(output)[..., :0]) if next(iter(output)) == "last_hidden_state" else None
    except (TypeError, StopIteration, KeyError):
        return None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
