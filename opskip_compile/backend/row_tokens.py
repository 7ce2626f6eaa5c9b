"""Whose rows a mask names: the token ids that it was compared with, from one graph of a forward to the next.

transformers checks that features and placeholder tokens match, which ends Dynamo's graph between ``input_ids == token``
and the merge. So the graph that makes a mask says of what it is, and the graph that merges asks. As with `MARKS`, what
is said belongs to one tensor object and dies with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import fx
from torch.utils.weak import WeakIdKeyDictionary

from opskip_compile import _compat
from opskip_compile.backend.resolve import classes_of
from opskip_compile.passes.analysis.merges import RowTokens, compared_tokens
from opskip_compile.passes.graph.sizes import Prompt
from opskip_compile.schedule.modalities import named_modalities, tokens_by_modality

Compiled = Callable[..., Any]
ByModality = Mapping[str, tuple[int, ...]]
_LOCK = threading.Lock()
_TOKENS: WeakIdKeyDictionary = WeakIdKeyDictionary()


class _Naming(threading.local):
    """Counts the rows of each modality of the prompt that this thread is in, by who has named them."""

    count: Callable[[], ByModality] | None = None


NAMING = _Naming()


def with_modalities(prompt: Prompt | None, tokens: RowTokens) -> Prompt | None:
    """``prompt`` with its rows of each modality, where they are told apart and the model has one modality or more."""
    if prompt is None:
        return None
    there = [name for name in tokens.modalities if name in tokens.known]
    found = NAMING.count() if NAMING.count is not None else dict.fromkeys(there[: len(there) == 1], prompt.visual)
    adds_up = tuple(map(sum, zip(*found.values(), strict=True))) == prompt.visual
    return replace(prompt, modalities=found) if adds_up else prompt


class InputTokens:
    """Tells the tokens of a graph's inputs, and keeps in mind of which it was asked.

    Args:
        inputs: of the graph.
    """

    def __init__(self, inputs: Sequence[Any]) -> None:
        self._tokens = _tokens_of(inputs)
        self._asked: dict[int, frozenset[int]] = {}

    def __call__(self, node: fx.Node) -> frozenset[int] | None:
        """Of one input, as `RowTokens` wants it."""
        i = list(node.graph.find_nodes(op="placeholder")).index(node)
        if i in self._tokens:
            self._asked[i] = self._tokens[i]
        return self._tokens.get(i)

    def hold_for(self, args: Sequence[Any]) -> bool:
        """True if all inputs that were asked for are of the same tokens in this call."""
        return not self._asked or self._asked == _tokens_of({i: args[i] for i in self._asked})

    def checking(self, run: Compiled, dense: Callable[[], Compiled]) -> Compiled:
        """Call a graph that depends on what was told: ``dense()`` instead, should it not hold."""
        if not self._asked:
            return run
        otherwise = dense()

        def call(*args: Any) -> Any:
            return run(*args) if self.hold_for(args) else otherwise(*args)

        return call


def row_tokens(graph: fx.Graph, modalities: tuple[str, ...], of_input: InputTokens) -> RowTokens:
    """What is known of the tokens of the model that is being compiled: by its config, or else by its class.

    Args:
        graph: that Dynamo captured of it.
        modalities: that the schedule means.
        of_input: of this graph.
    """
    configs = (getattr(module, "config", None) for module in _compat.modules_on_stack())
    kinds = (getattr(kind, "config_class", None) for kind in classes_of(graph.nodes))
    candidates = chain(map(tokens_by_modality, configs), map(named_modalities, kinds))
    return RowTokens(modalities, next(filter(None, candidates), {}), of_input)


def saying(run: Compiled, graph: fx.Graph, inputs: Sequence[Any]) -> Compiled:
    """Call a graph, and say of the masks among its results what they were compared with."""
    results, of_input = graph.output_node().args[0], InputTokens(inputs)
    found = {
        i: tokens
        for i, node in enumerate(results if isinstance(results, list | tuple) else ())
        if isinstance(node, fx.Node) and (tokens := compared_tokens(node, of_input))
    }
    if not found:
        return run

    def call(*args: Any) -> Any:
        outs = run(*args)
        if of_input.hold_for(args):
            with _LOCK:
                for i, tokens in found.items():
                    _TOKENS[outs[i]] = tokens
        return outs

    return call


def _tokens_of(inputs: Sequence[Any] | Mapping[int, Any]) -> dict[int, frozenset[int]]:
    items = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    with _LOCK:
        return {i: _TOKENS[value] for i, value in items if isinstance(value, torch.Tensor) and value in _TOKENS}
