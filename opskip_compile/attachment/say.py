"""What a user is told who asked for skipping and gets none, though nothing failed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from torch import nn

from opskip_compile import _compat
from opskip_compile.backend.reports import REPORTS
from opskip_compile.errors import NothingSkippedWarning
from opskip_compile.passes.marks import NOT_SKIPPED
from opskip_compile.passes.refusal import Refusal, Why
from opskip_compile.report.report import Report
from opskip_compile.schedule.modalities import in_words, tokens_by_modality

NOT_COMPILED = "opskip: this prompt runs dense and uncompiled: {why}. This is said once for each model."
MARK = "Name the rows of its inputs_embeds with opskip_compile.mark_visual"
_TOLD: WeakSet[nn.Module] = WeakSet()


def say_not_compiled(model: nn.Module, function: Callable[..., Any] | None = None) -> None:
    """A prompt with visual rows ran without any compiled code: Dynamo was told to, or it has given ``function`` up."""
    if model in _TOLD:
        return
    _TOLD.add(model)
    text = NOT_COMPILED.format(why=_why(function))
    REPORTS.add(Report(refusal=Refusal(Why.NOT_COMPILED, text.removeprefix("opskip: "))))
    warnings.warn(text, NothingSkippedWarning, stacklevel=2)


def _why(function: Callable[..., Any] | None) -> str:
    switched_off = _compat.why_dynamo_is_off()
    if switched_off or function is None:
        return switched_off
    compiles, limit = _compat.compiles_of(function), _compat.highest_recompile_count()
    if compiles < limit:
        return "Dynamo has left it as it is; TORCH_LOGS=dynamo says why"
    return (
        f"Dynamo has compiled this decoder {compiles} times for prompts with images, which is its limit, "
        "and prompts that need other code stay eager. "
        "Pad prompts to fewer lengths, leave dynamic=False out, or raise torch._dynamo.config.recompile_limit and "
        "compile the model again"
    )


def say_counted_in_part(graphs: int) -> None:
    """A dispatch mode saw the graphs of a forward, and not the code between them."""
    text = (
        f"opskip: Dynamo captured this forward as {graphs} graphs; what runs between them was not seen by the dispatch "
        "mode, so a count of FLOPs may be too low. last_report() counts the operators themselves"
    )
    warnings.warn(text, NothingSkippedWarning, stacklevel=2)


def say_other_rows(stream: str) -> None:
    """The rows that reach the decoder are not those of the prompt."""
    why = f"the decoder was not called with {stream}= of as many rows as there are input_ids"
    advice = "The model's code has to call it so"
    warnings.warn(NOT_SKIPPED.format(why=why, advice=advice), NothingSkippedWarning, stacklevel=2)


def say_no_rows() -> None:
    """There are features, and no row that could be theirs."""
    why = "the forward got no input_ids, and no row of its inputs_embeds is the embedding of an image or audio token"
    warnings.warn(NOT_SKIPPED.format(why=why, advice=MARK), NothingSkippedWarning, stacklevel=2)


def say_expanded() -> None:
    """The model makes many rows of one token, and hands on rows whose places its token ids don't tell."""
    why = "the model's forward expands single audio tokens, so that its input_ids don't tell their rows"
    advice = "Let its processor expand them: transformers' own does"
    warnings.warn(NOT_SKIPPED.format(why=why, advice=advice), NothingSkippedWarning, stacklevel=2)


def say_other_modalities(model: nn.Module, modalities: tuple[str, ...]) -> None:
    """The config of ``model`` names tokens, but none of those whose rows the schedule means."""
    there = tuple(tokens_by_modality(getattr(model, "config", None)))
    if not there or not {*there}.isdisjoint(modalities):
        return
    text = (
        f"opskip: nothing will be skipped: the schedule means rows of {in_words(modalities)}, and "
        f"{type(model).__name__} has rows of {in_words(there)}. Put modalities={','.join(there)} into the schedule"
    )
    warnings.warn(text, NothingSkippedWarning, stacklevel=3)
