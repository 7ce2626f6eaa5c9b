"""Operations that compute every element from the elements in the same place."""

from __future__ import annotations

from opskip_compile.passes.ops.families import broadcast, cast, elementwise, like_other
from opskip_compile.passes.ops.operation import Call, Dims, Operation, Trait, declined
from opskip_compile.passes.ops.table import declare
from opskip_compile.passes.refusal import Refusal, Why

# A name of one element, and its synonyms.
_ONE = (
    "square tan asin|arcsin acos|arccos atan|arctan sinh cosh asinh|arcsinh acosh|arccosh atanh|arctanh "
    "erf erfc erfinv exp exp2 expm1 log log1p log2 log10 sqrt reciprocal abs|absolute neg|negative sign sgn ceil floor "
    "trunc|fix frac sinc digamma lgamma i0 deg2rad rad2deg invert bitwise_not "
    "log_sigmoid|logsigmoid softsign tanhshrink relu6 hardswish hardsigmoid"
)
_ONE_PERIODIC = "sin cos"
_ONE_LOGICAL = "isnan isinf isfinite isposinf isneginf signbit logical_not"
_TWO = (
    "mul|multiply mod remainder fmod floordiv|floor_divide maximum minimum fmax fmin atan2|arctan2 hypot logaddexp "
    "logaddexp2 copysign nextafter heaviside xlogy gcd lcm ldexp lshift|bitwise_left_shift rshift|bitwise_right_shift"
)
_TWO_LOGICAL = (
    "eq ne|not_equal lt|less le|less_equal gt|greater ge|greater_equal and|and_|bitwise_and|logical_and "
    "or|or_|bitwise_or|logical_or xor|bitwise_xor|logical_xor"
)
for _names, _signature, _traits in (
    (_ONE, "input", ()),
    (_ONE_PERIODIC, "input", (Trait.PERIODIC,)),
    (_ONE_LOGICAL, "input", (Trait.LOGICAL,)),
    (_TWO, "input, other", ()),
    (_TWO_LOGICAL, "input, other", (Trait.LOGICAL,)),
):
    for _name, *_synonyms in (names.split("|") for names in _names.split()):
        declare(elementwise(_name, _signature, synonyms=tuple(_synonyms), traits=_traits))

declare(
    # arithmetic
    elementwise("add", "input, other, *, alpha=1"),
    elementwise("sub", "input, other, *, alpha=1", synonyms=("subtract",)),
    elementwise("rsub", "input, other, *, alpha=1"),
    elementwise("pow", "input, exponent"),
    elementwise("float_power", "input, exponent"),
    elementwise("div", "input, other, *, rounding_mode=None", synonyms=("truediv", "true_divide", "divide")),
    elementwise("addcmul", "input, tensor1, tensor2, *, value=1"),
    elementwise("addcdiv", "input, tensor1, tensor2, *, value=1"),
    elementwise("lerp", "input, end, weight"),
    elementwise("clamp", "input, min=None, max=None", synonyms=("clip",)),
    elementwise("clamp_min", "input, min"),
    elementwise("clamp_max", "input, max"),
    elementwise("round", "input, *, decimals=0"),
    elementwise("nan_to_num", "input, nan=None, posinf=None, neginf=None"),
    elementwise("logit", "input, eps=None"),
    elementwise("where", "condition, input, other", spelled={"Tensor.where": "input, condition, other"}),
    elementwise("masked_fill", "input, mask, value"),
    elementwise("isclose", "input, other, rtol=1e-05, atol=1e-08, equal_nan=False", traits=(Trait.LOGICAL,)),
    elementwise("complex", "real, imag"),
    elementwise("polar", "abs, angle"),
    # activations; what Python functions of torch.nn.functional take besides, they tell themselves
    elementwise("rsqrt", traits=(Trait.NORM_STEP,)),
    elementwise("sigmoid", synonyms=("expit",), traits=(Trait.ACTIVATION,)),
    elementwise("tanh", traits=(Trait.ACTIVATION,)),
    elementwise("relu", traits=(Trait.ACTIVATION,)),
    elementwise("silu", traits=(Trait.ACTIVATION,)),
    elementwise("mish", traits=(Trait.ACTIVATION,)),
    elementwise("gelu", "input, *, approximate='none'", traits=(Trait.ACTIVATION,)),
    elementwise("softplus", "input, beta=1, threshold=20"),
    elementwise("leaky_relu", "input, negative_slope=0.01"),
    elementwise("elu", "input, alpha=1.0, scale=1, input_scale=1"),
    elementwise("selu"),
    elementwise("celu", "input, alpha=1.0"),
    elementwise("threshold", "input, threshold, value"),
    elementwise("hardtanh", "input, min_val=-1, max_val=1"),
    elementwise("hardshrink", "input, lambd=0.5"),
    elementwise("softshrink", "input, lambd=0.5"),
    # the value itself, or a copy of the same shape
    elementwise("positive", aliases=("input",), synonyms=("pos",)),
    elementwise("detach", aliases=("input",)),
    elementwise("alias", aliases=("input",)),
    elementwise("real", aliases=("input",)),
    elementwise("imag", aliases=("input",)),
    elementwise("conj", aliases=("input",)),
    elementwise("type", "input, dtype=None, non_blocking=False", aliases=("input",), traits=(Trait.CAST,)),
    elementwise("type_as", "input, other", rows=like_other, aliases=("input",), traits=(Trait.CAST,)),
    *(elementwise(n, "input, memory_format=None", aliases=("input",)) for n in ("int", "long", "bool")),
    *(cast(n, "input, memory_format=None") for n in ("double", "float", "half", "bfloat16", "contiguous")),
    cast(
        "to",
        "input, other:T, non_blocking=False, copy=False, *, memory_format=None",
        "input, dtype, non_blocking=False, copy=False, *, memory_format=None, device=None",
        "input, device=None, dtype=None, non_blocking=False, copy=False, *, memory_format=None, layout=None",
    ),
)
# Always new memory, unlike the other casts.
_copy = cast("clone", "input, *, memory_format=None")
declare(
    Operation("clone", _copy.signatures, rows=_copy.rows, resize=_copy.resize, traits=_copy.traits),
    # What aten makes of casts.
    Operation(
        "_to_copy",
        ("input, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None",),
        rows=_copy.rows,
        resize=_copy.resize,
        traits=_copy.traits,
    ),
)


def is_active_dropout(call: Call) -> bool:
    """True for dropout that is switched on."""
    return call["training"] is not False and call["p"] != 0


def dropout(call: Call, dim: int) -> Dims | Refusal:
    """Dropout that is switched off is the identity."""
    if is_active_dropout(call):
        return declined("dropout is active, so the rows share one random stream", Why.RANDOM)
    return broadcast(call.node, dim, call.tensors("input"))


declare(
    Operation(
        "dropout",
        ("input, p, training",),
        renamed={"train": "training"},
        rows=dropout,
        aliases=("input",),
        traits=frozenset({Trait.LOOSE}),
    ),
    Operation("rrelu", ("input, lower=0.125, upper=0.3333333333333333, training=False, generator=None",)),
)
