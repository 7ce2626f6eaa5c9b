"""What to do where image rows reached a decoder and nothing was skipped: it depends on the reason, and on the call."""

from __future__ import annotations

from opskip_compile.backend.settings import Settings
from opskip_compile.passes.marks import NOT_SKIPPED
from opskip_compile.passes.refusal import Why

COMPILE = (
    "Call opskip_compile.compile(model) instead of torch.compile, or name the rows with opskip_compile.mark_visual in "
    "the model's code. torch.compile(model).generate() runs uncompiled: use model.compile(backend='opskip') for "
    "generate()"
)
ALONE = (
    "opskip: the model that calls this decoder got an image, but the decoder was compiled alone and does not know its "
    "visual rows: it runs dense. Call opskip_compile.compile(model) with the whole model, or name the rows of "
    "inputs_embeds with opskip_compile.mark_visual before the decoder is called. This is said once for each graph."
)
LAYERS = "opskip_compile.compile(model, regional=True) compiles layer by layer, which needs no count of them"
BREAKS = "A graph break parts the decoder; TORCH_LOGS=graph_breaks shows where"
ONE_GRAPH = ("sdpa", "eager")  # attentions of transformers that never end a graph
OTHER_ATTENTION = (
    "A graph break parts the decoder, and code around its attention ({name!r}) is known for that; with "
    "model.set_attn_implementation('sdpa') before opskip_compile.compile(model) it is one graph, and PyTorch has "
    "FlashAttention of its own"
)
READ = "opskip_compile.last_report() names the nodes and the lines of the model that they stand for"
NOTHING = "No way to compile such a model skips anything"
REGIONS = "Compile the layers without nested regions"
NO_GRADIENTS = "Call the model under torch.no_grad(), as generate() does"
CHECKPOINTS = "opskip_compile.compile(model) puts its code inside of activation checkpoints; leave nested regions out"


def not_skipped(reason: str, why: Why | None, settings: Settings) -> str:
    """The warning, with the advice that fits.

    Args:
        reason: of the report.
        why: its kind; None where a graph before the decoder named rows that no later graph has taken up.
        settings: how the model was compiled.
    """
    return NOT_SKIPPED.format(why=reason, advice=_advice(why, settings))


def _advice(why: Why | None, settings: Settings) -> str:
    if why in (Why.ENCODER, Why.CROSS_ATTENTION):
        return NOTHING
    if why is Why.SPREAD:
        return NO_GRADIENTS
    if why is Why.NESTED:
        return REGIONS if settings.in_place else CHECKPOINTS
    if why not in (None, Why.PART, Why.UNCERTAIN_LAYERS, Why.UNTOLD_ROWS):
        return READ
    if not settings.in_place:
        return COMPILE
    if why is not None and settings.layer is None:
        return LAYERS
    return BREAKS if settings.attention in (None, *ONE_GRAPH) else OTHER_ATTENTION.format(name=settings.attention)
