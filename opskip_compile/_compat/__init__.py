"""Every private name of torch and transformers that this package touches, behind small functions, by area.

Support window: torch 2.11 to 2.15, transformers 5.17 to 5.24. A new release is supported once these modules have been
read against it, and all tests pass with it (``make test-versions``).

Nothing here loads Dynamo or Inductor before a function is called that needs them. Callers use the names of this module.
"""

from opskip_compile._compat.accelerate import (
    checkpointing,
    forward_slot,
    has_hook,
    hooked_inside,
    is_checkpointed,
    only_load_weights,
    weights_loaded,
    without_checkpointing,
)
from opskip_compile._compat.dynamo import (
    compile_seconds,
    compiled_call,
    compiles_of,
    emit_artifact,
    forget_backend,
    highest_recompile_count,
    ignore_log_lines,
    inside_torch_compile,
    is_dynamo_disabled,
    never_traced,
    not_on_compile_start,
    on_compile_start,
    recompile_limit,
    recompile_reason,
    register_backend,
    set_apart,
    set_compiled_call,
    steers_dynamo,
    uncompiled_call,
    unlimited_recompiles,
    why_dynamo_is_off,
    with_own_code,
)
from opskip_compile._compat.graphs import add_tensor_placeholder, keep_dynamo, pattern_matches
from opskip_compile._compat.inductor import (
    allow_caching,
    generated_kernels,
    inductor,
    inductor_mode_options,
    inductor_option_names,
    lowering_sources,
    probe_vector_instructions,
)
from opskip_compile._compat.kernels import blas_is_slow, onednn_linear
from opskip_compile._compat.models import (
    CACHE_ARGUMENTS,
    DEEPSTACK_METHOD,
    DEEPSTACK_PARAMETERS,
    attention_implementation,
    cache_argument,
    generating_with,
    traceable_collector,
)
from opskip_compile._compat.modes import dispatch_modes_are_on, under_modes, without_modes
from opskip_compile._compat.operations import is_higher_order, is_overload, is_packet
from opskip_compile._compat.patches import Patch, torch_is_older_than
from opskip_compile._compat.regions import REGION, invoke_region
from opskip_compile._compat.shapes import known_at_least, same_size, size_hint, unbacked_size
from opskip_compile._compat.tensors import fake_mask_like, is_fake, is_subclass, memory_of

__all__ = [
    "CACHE_ARGUMENTS",
    "DEEPSTACK_METHOD",
    "DEEPSTACK_PARAMETERS",
    "REGION",
    "Patch",
    "add_tensor_placeholder",
    "allow_caching",
    "attention_implementation",
    "blas_is_slow",
    "cache_argument",
    "checkpointing",
    "compile_seconds",
    "compiled_call",
    "compiles_of",
    "dispatch_modes_are_on",
    "emit_artifact",
    "fake_mask_like",
    "forget_backend",
    "forward_slot",
    "generated_kernels",
    "generating_with",
    "has_hook",
    "highest_recompile_count",
    "hooked_inside",
    "ignore_log_lines",
    "inductor",
    "inductor_mode_options",
    "inductor_option_names",
    "inside_torch_compile",
    "invoke_region",
    "is_checkpointed",
    "is_dynamo_disabled",
    "is_fake",
    "is_higher_order",
    "is_overload",
    "is_packet",
    "is_subclass",
    "keep_dynamo",
    "known_at_least",
    "lowering_sources",
    "memory_of",
    "never_traced",
    "not_on_compile_start",
    "on_compile_start",
    "onednn_linear",
    "only_load_weights",
    "pattern_matches",
    "probe_vector_instructions",
    "recompile_limit",
    "recompile_reason",
    "register_backend",
    "same_size",
    "set_apart",
    "set_compiled_call",
    "size_hint",
    "steers_dynamo",
    "torch_is_older_than",
    "traceable_collector",
    "unbacked_size",
    "uncompiled_call",
    "under_modes",
    "unlimited_recompiles",
    "weights_loaded",
    "why_dynamo_is_off",
    "with_own_code",
    "without_checkpointing",
    "without_modes",
]
