"""Norms, softmax and reductions: row by row as long as they do not reduce over the rows."""

from __future__ import annotations

from opskip_compile.passes.ops.families import along, broadcast, plain, reduced, reduction
from opskip_compile.passes.ops.operation import Call, Dims, Operation, Trait, declined, shape
from opskip_compile.passes.ops.table import declare
from opskip_compile.passes.refusal import Refusal


def extreme(call: Call, dim: int) -> Dims | Refusal:
    """Of two tensors, or along a dimension: `getitem` takes the values and the indices apart."""
    if call["other"] is not None:
        return broadcast(call.node, dim, call.tensors("input", "other"))
    if call["dim"] is None:
        return declined("it reduces over all dimensions")
    x, over = call.operand(), call.dimension()
    if not call["keepdim"]:
        return {x: dim + (dim >= over)}
    return declined("it reduces over the rows") if over == dim else {x: dim}


def layer_norm(call: Call, dim: int) -> Dims | Refusal:
    """Normalises over the last dimensions."""
    x, normalized = call.operand(), call["normalized_shape"]
    if dim >= len(shape(x)) - len(normalized):
        return declined("it normalises over the rows")
    return {x: dim}


def normalize(call: Call, dim: int) -> Dims | Refusal:
    """Divided by its norm over some dimensions."""
    x = call.operand()
    over = reduced(call, len(shape(x)))
    return declined("it normalises over the rows") if over is None or dim in over else {x: dim}


_SPREAD = (
    "input, dim, unbiased, keepdim=False",
    "input, dim=None, *, correction=1, keepdim=False",
)
_NORM = "input, p='fro', dim=None, keepdim=False, dtype=None"
_PARTS = (Trait.PARTS,)
# Running statistics are written in training; what the schemas of these say of it is wrong.
_RUNNING = ("running_mean", "running_var")
_BY_BATCH = "input, weight, bias, running_mean, running_var"
declare(
    reduction("mean", traits=(Trait.NORM_STEP,)),
    reduction("var", *_SPREAD, traits=(Trait.NORM_STEP,)),
    reduction("std", *_SPREAD),
    *(reduction(name) for name in "sum prod nansum nanmean".split()),
    *(reduction(name, "input, dim=None, keepdim=False") for name in "amax amin logsumexp all any".split()),
    reduction("count_nonzero", "input, dim=None"),
    reduction("norm", _NORM, "input, p='fro', dim=None, keepdim=False"),
    reduction("vector_norm", "input, ord=2, dim=None, keepdim=False, *, dtype=None", synonyms=("linalg_vector_norm",)),
    Operation("max", ("input, other:T", "input, dim=None, keepdim=False"), rows=extreme, traits=frozenset(_PARTS)),
    Operation("min", ("input, other:T", "input, dim=None, keepdim=False"), rows=extreme, traits=frozenset(_PARTS)),
    along("softmax", "input, dim, dtype=None", synonyms=("_softmax",), traits=(Trait.ACTIVATION,)),
    along("log_softmax", "input, dim, dtype=None", synonyms=("_log_softmax",)),
    along("softmin", "input, dim, dtype=None"),
    *(along(name) for name in ("cumsum", "cumprod")),
    along("logcumsumexp", "input, dim"),
    Operation(
        "layer_norm",
        ("input, normalized_shape, weight=None, bias=None, eps=1e-05, cudnn_enable=True",),
        rows=layer_norm,
        traits=frozenset({Trait.NORM_STEP}),
    ),
    Operation(
        "rms_norm",
        ("input, normalized_shape, weight=None, eps=None",),
        rows=layer_norm,
        traits=frozenset({Trait.NORM_STEP}),
    ),
    plain(
        "batch_norm",
        f"{_BY_BATCH}, training, momentum, eps, cudnn_enabled=True",
        synonyms=("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"),
        writes=_RUNNING,
    ),
    plain("instance_norm", f"{_BY_BATCH}, use_input_stats, momentum, eps, cudnn_enabled=True", writes=_RUNNING),
    Operation("normalize", ("input, p=2.0, dim=1, eps=1e-12",), rows=normalize),
)
